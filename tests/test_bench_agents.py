"""Agents without a GPU: real frontends, the real block pool, an engine that makes its tokens up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tokenizers_for_tests import write_byte_level_tokenizer

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_left")
@pytest.mark.parametrize("answers", ["words", "letters"])
def test_later_turns_find_their_prefix(tmp_path: Path, answers: str) -> None:
    model_dir = write_byte_level_tokenizer(tmp_path / "model")
    figures = tmp_path / "figures.json"
    command = ["-m", "scripts.bench_frontend.agents", "--model", str(model_dir), "--sessions", "3", "--turns", "3"]
    flags = ["--answers", answers, "--steps-per-s", "500", "--frontends", "2", "--json", str(figures), "--", "--quiet"]
    done = subprocess.run([sys.executable, *command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "turns 2 to 3:" in done.stdout, done.stderr
    (load,) = json.loads(figures.read_text())["loads"]
    assert (load["ok"], load["errors"], load["wrong_length"], load["output_tokens"]) == (9, 0, 0, 9 * 150)
    assert load["prefix_cache_hit_rate_later_turns"] > 0.8
    assert done.stderr == ""

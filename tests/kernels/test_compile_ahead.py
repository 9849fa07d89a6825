"""Kernels are compiled ahead, as they will be launched, and nothing runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


def test_every_specialisation_is_compiled_once_and_none_is_run(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, "-m", "tests.kernels.ahead_without_gpu"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.gpu
def test_what_was_compiled_ahead_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.kernels.triton_compile import compile_ahead
    from tests.kernels.ahead_without_gpu import scale

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compile_ahead([lambda: scale(torch.empty(4096, device="cuda"), 512)]) == 1
    x = torch.randn(4096, device="cuda")
    assert torch.equal(scale(x, 512), x * 2)
    assert len(list(tmp_path.rglob("*.cubin"))) == 1

"""The benchmark of starts: its checkpoints load, its servers start and end."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from penstock.engine.model_config import ModelConfig
from penstock.engine.models import build_model
from penstock.engine.safetensors_header import read_header
from penstock.engine.weights import load_weights
from scripts.bench_start import main, write_checkpoint
from tests.checkpoints import write_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    path = tmp_path / "llama"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(path)
    return path


def test_a_written_checkpoint_loads(model_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "written"
    num_bytes = write_checkpoint(model_dir, target, num_shards=3)
    files = sorted(target.glob("*.safetensors"))
    assert len(files) == 3
    assert num_bytes == sum(entry.num_bytes for path in files for entry in read_header(path))
    model = build_model(ModelConfig.from_dir(target), device="cpu", dtype=torch.bfloat16)
    load_weights(model, target, io.StringIO())
    assert torch.equal(model.norm.weight, torch.ones(64, dtype=torch.bfloat16))
    weights = model.lm_head.weight.float()
    assert weights.isfinite().all()
    assert 0.015 < float(weights.std()) < 0.025


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_left")
def test_starts_are_timed(model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--", "--device", "cpu", "--max-model-len", "128"]
    monkeypatch.setattr("sys.argv", ["bench_start", "--real", str(model_dir), "--repeat", "1", *flags])
    main()
    first, *table = capsys.readouterr().out.splitlines()
    start = json.loads(first)
    assert 0 < start["ready_s"] < start["first_token_s"]
    assert {"imports", "weights read", "weights copied", "warm-up"} <= set(start["phases_s"])
    assert table[1].split()[:3] == ["llama", "real", "empty"]

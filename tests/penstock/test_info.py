from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock import __version__, info
from penstock.engine.config import EngineConfig
from penstock.flags import USAGE_ERROR
from tests.toy_model import make_toy_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
NUM_PARAMETERS = 512 * 64 + 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64


def test_versions_devices_and_the_memory_plan_are_shown_without_any_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = make_toy_model(tmp_path / "llama")
    (model_dir / "config.json").write_text(json.dumps(LLAMA))
    assert info.run(EngineConfig(model=str(model_dir), device="cpu", num_gpu_blocks_override=100)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"penstock      {__version__}" in lines
    assert any(line.startswith("cpu  ") and line.endswith("free") for line in lines)
    assert f"{model_dir}: LlamaForCausalLM, {NUM_PARAMETERS:,} parameters, on cpu" in lines
    assert any("100 blocks of 16 tokens: 1,600 tokens" in line for line in lines)


def test_a_model_that_cannot_run_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.run(EngineConfig(model=str(tmp_path), device="cpu")) == USAGE_ERROR
    assert "is not a model directory" in capsys.readouterr().err

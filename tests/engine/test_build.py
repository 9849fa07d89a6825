"""An engine from its configuration."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from penstock.engine.build import load_engine
from penstock.engine.config import EngineConfig
from penstock.engine.errors import EngineStartError
from penstock.engine.toy_config import ToyConfig, expected_tokens
from penstock.kernels import ops
from tests.engine.toy_engine import make_submit, run_to_end
from tests.toy_model import EOS_TOKEN_ID, make_toy_model


def test_a_toy_model_runs(tmp_path: Path) -> None:
    model_dir = make_toy_model(tmp_path)
    config = EngineConfig(model=str(model_dir), num_gpu_blocks_override=50, max_model_len=300, max_num_seqs=4)
    loaded = load_engine(config)
    assert loaded.facts.model_dir == str(model_dir.resolve())
    assert loaded.facts.served_model_names == (str(model_dir),)
    assert (loaded.facts.num_blocks, loaded.facts.max_model_len, loaded.facts.vocab_size) == (50, 300, 272)
    assert loaded.facts.eos_token_ids == (EOS_TOKEN_ID,)
    collected = run_to_end(loaded.core, {"a": make_submit([1, 2, 3], 20)})
    assert collected.token_ids["a"] == expected_tokens([1, 2, 3], 20, ToyConfig.from_dir(model_dir))


def test_the_flags_reach_the_engine(tmp_path: Path) -> None:
    config = EngineConfig(
        model=str(make_toy_model(tmp_path, windows=[None, 32])),
        served_model_names=("a", "b"),
        block_size=8,
        max_num_batched_tokens=10,
        enable_prefix_caching=False,
    )
    loaded = load_engine(config)
    scheduler = loaded.core.scheduler
    assert loaded.facts.served_model_names == ("a", "b")
    assert scheduler.blocks.windows == (None, 32)
    assert (scheduler.blocks.block_size, scheduler.blocks.caches_prefixes) == (8, False)
    assert scheduler.limits.max_num_batched_tokens == 10


def test_what_cannot_work_is_one_clear_line(tmp_path: Path) -> None:
    config = EngineConfig(model=str(make_toy_model(tmp_path)))
    with pytest.raises(EngineStartError, match=r"--max-model-len 5000 .* 4096"):
        load_engine(replace(config, max_model_len=5000))
    with pytest.raises(EngineStartError, match=r"--max-model-len 700 .* 640"):
        load_engine(replace(config, max_model_len=700, num_gpu_blocks_override=40))
    with pytest.raises(EngineStartError, match="--block-size must be at least 1"):
        load_engine(replace(config, block_size=0))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(EngineStartError, match="--gpu-memory-utilization must be above 0 and at most 1"):
            load_engine(replace(config, gpu_memory_utilization=share))
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(EngineStartError, match=r"config.json is not valid JSON"):
        load_engine(config)
    with pytest.raises(EngineStartError, match="neither a directory nor"):
        load_engine(replace(config, model="/no/such/model/anywhere"))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")],
    ids=str,
)
def test_memory_that_runs_out_while_starting_is_said(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise error

    monkeypatch.setattr(ops, "make_kv_cache", run_out)
    with pytest.raises(EngineStartError, match=r"less memory than was planned with; lower --kv-cache-memory-bytes"):
        load_engine(EngineConfig(device="cpu", num_gpu_blocks_override=8, load_format="dummy"))
    monkeypatch.setattr(ops, "make_kv_cache", lambda *_: torch.zeros(1) @ torch.zeros(2))
    with pytest.raises(RuntimeError, match="size"):  # a mistake of ours is shown as one
        load_engine(EngineConfig(device="cpu", num_gpu_blocks_override=8, load_format="dummy"))


def test_the_toy_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from penstock.engine.build import load_engine\n"
        "from penstock.engine.config import EngineConfig\n"
        "import penstock.engine.main\n"
        "load_engine(EngineConfig(model=sys.argv[1]))\n"
        "assert not {'torch', 'triton', 'transformers'} & sys.modules.keys()\n"
    )
    model_dir = make_toy_model(tmp_path)
    subprocess.run([sys.executable, "-c", program, str(model_dir)], check=True, timeout=60)

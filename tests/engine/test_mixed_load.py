"""Many requests of all kinds, some aborted: each ends exactly once, and neither KV blocks nor device memory are lost."""

from __future__ import annotations

import gc
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.core import EngineCore
from penstock.ipc.messages import FinishReason
from tests.checkpoints import MAX_POSITIONS, VOCAB_SIZE, make_checkpoint, write_tokenizer
from tests.engine.generating import engine_for, generate
from tests.engine.mixed_load import KINDS, Load, MixedLoad

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "eos_token_id": [128_001, 128_008, 128_009],
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""Llama-3.1-8B's config.json."""
SEGMENT_BYTES = 256 << 20
"""What the allocator may take once more, for a step with more logprobs and penalties than any before."""


@pytest.mark.parametrize("overlap", [True, False], ids=["overlapped", "synchronous"])
@pytest.mark.parametrize("name", ["llama", "qwen2_mixed_windows"])
def test_a_small_mixed_load(name: str, overlap: bool, tmp_path: Path) -> None:
    core = engine_for(
        make_checkpoint(name, tmp_path),
        max_num_seqs=8,
        max_num_batched_tokens=64,
        num_gpu_blocks_override=48,
        async_scheduling=overlap,
    )
    load = Load(
        num_requests=60, max_prompt_tokens=120, max_output_tokens=30, vocab_size=VOCAB_SIZE, max_open=16, seed=int(overlap)
    )
    assert load.max_prompt_tokens + load.max_output_tokens < MAX_POSITIONS
    mixed = MixedLoad(core, load)
    mixed.run()
    assert mixed.ended.keys() == {FinishReason.LENGTH, FinishReason.STOP, FinishReason.ABORT}


@pytest.mark.gpu
@pytest.mark.whole_gpu
@pytest.mark.timeout(400)
def test_a_mixed_load_on_an_8b_model_takes_no_memory_for_good(tmp_path: Path) -> None:
    import torch

    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    write_tokenizer(tmp_path)
    core = engine_for(
        tmp_path,
        device="cuda",
        dtype="bfloat16",
        load_format="dummy",
        max_model_len=4096,
        max_num_seqs=128,
        max_num_batched_tokens=2048,
        num_gpu_blocks_override=5000,
    )
    ended: Counter[FinishReason] = Counter()
    allocated, reserved = [], []
    make_everything_that_is_kept(core)
    for part, num_requests in enumerate((333, 333, 334)):
        load = Load(
            num_requests=num_requests,
            max_prompt_tokens=2000,
            max_output_tokens=200,
            vocab_size=LLAMA_8B["vocab_size"],
            max_open=200,
            seed=part,
        )
        mixed = MixedLoad(core, load)
        mixed.run()
        ended += mixed.ended
        while core.on_idle():
            pass
        gc.collect()
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
        reserved.append(torch.cuda.memory_reserved())
    print(f"{dict(ended)}, {core.scheduler.metrics.num_preemptions} preemptions, reserved {reserved}")
    assert ended.total() == 1000
    assert ended.keys() == {FinishReason.LENGTH, FinishReason.STOP, FinishReason.ABORT}
    assert allocated == [allocated[0]] * 3
    assert reserved[2] - reserved[1] <= SEGMENT_BYTES


def make_everything_that_is_kept(core: EngineCore) -> None:
    """Has the engine allocate what it makes when it is first needed: graphs, a row of token counts for each request."""
    while core.on_idle():
        pass
    limits = core.scheduler.limits
    for fields in ({"repetition_penalty": 1.1}, *KINDS):
        generate(core, [[7] * 20] * limits.max_num_seqs, max_tokens=4, **fields)

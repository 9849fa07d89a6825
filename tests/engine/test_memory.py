"""The memory plan: what fits, and what is said when it does not."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from penstock.engine.config import EngineConfig
from penstock.engine.errors import EngineStartError
from penstock.engine.kv_blocks import KVBlocks
from penstock.engine.memory import plan_memory
from penstock.engine.memory_probe import DeviceMemory
from penstock.engine.model_config import ModelConfig
from penstock.engine.model_memory import blocks_for, count_block_bytes, count_parameters, longest_request
from penstock.engine.models import build_model
from penstock.engine.rope_config import DefaultRope, LinearRope
from penstock.engine.step_memory import ATTENTION_ROUND_ELEMENTS, CUDA_GRAPH_BYTES, count_step_memory
from penstock.kernels import ops, reference_attention

GIB = 1 << 30
TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=320,
    hidden_size=64,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    rms_norm_eps=1e-6,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    rope=DefaultRope(10_000.0),
    layer_windows=(None,) * 4,
    dtype="float32",
    eos_token_ids=(),
    generation_defaults={},
)
TINY_BLOCK_BYTES = 2 * 4 * 16 * 2 * 16 * 4
LLAMA_8B = replace(
    TINY,
    vocab_size=128256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    max_position_embeddings=131072,
    layer_windows=(None,) * 32,
    dtype="bfloat16",
)
CPU = DeviceMemory("cpu", 16 * GIB, 8 * GIB)
H200 = DeviceMemory("cuda", 140 * GIB, 139 * GIB)


def engine(**settings: Any) -> EngineConfig:
    return EngineConfig(**{"max_num_batched_tokens": 64, "max_num_seqs": 8, **settings})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {"architecture": "MistralForCausalLM", "num_kv_heads": 4},
        {"architecture": "Qwen2ForCausalLM", "qkv_bias": True},
        {"architecture": "Qwen3ForCausalLM", "qk_norm": True, "head_dim": 32},
    ],
)
def test_weights_are_counted_as_built(changes: dict[str, Any]) -> None:
    config = replace(TINY, **changes)
    model = build_model(config, device="cpu", dtype=torch.bfloat16)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


def test_llama_3_1_8b_has_its_8_billion_parameters() -> None:
    assert count_parameters(LLAMA_8B) == 8_030_261_248


def test_a_block_takes_what_the_caches_take() -> None:
    k_cache, v_cache = ops.make_kv_cache(10, 16, 2, 16, torch.float32, torch.device("cpu"))
    assert count_block_bytes(TINY, 16, "float32") == 4 * (k_cache.nbytes + v_cache.nbytes) // 10 == TINY_BLOCK_BYTES


def test_the_attention_twins_scratch_is_covered_by_the_plan() -> None:
    assert max(reference_attention.MAX_GATHERED_ELEMENTS.values()) == ATTENTION_ROUND_ELEMENTS


def test_on_the_cpu_the_kv_cache_takes_one_gib() -> None:
    plan = plan_memory(TINY, engine(), CPU, "float32")
    assert plan.num_blocks == GIB // TINY_BLOCK_BYTES
    assert plan.kv_cache_bytes == plan.num_blocks * plan.block_bytes <= GIB
    assert plan.weights_bytes == count_parameters(TINY) * 4
    assert plan.max_model_len == 4096
    assert plan.num_full_length_requests == plan.num_blocks / 256
    assert plan.notes == ()


def test_on_the_cpu_free_memory_bounds_the_kv_cache() -> None:
    plan = plan_memory(TINY, engine(), DeviceMemory("cpu", 16 * GIB, GIB), "float32")
    assert plan.num_blocks == (int(0.92 * GIB) - plan.weights_bytes - plan.step.total) // TINY_BLOCK_BYTES


def test_on_cuda_everything_together_takes_the_asked_share() -> None:
    plan = plan_memory(LLAMA_8B, engine(gpu_memory_utilization=0.5), H200, "bfloat16")
    together = plan.total_bytes
    assert 70 * GIB - plan.block_bytes < together <= 70 * GIB


def test_on_cuda_memory_that_others_use_is_left_to_them() -> None:
    plan = plan_memory(LLAMA_8B, engine(), replace(H200, free_bytes=40 * GIB), "bfloat16")
    assert plan.total_bytes <= 40 * GIB


def test_a_given_kv_cache_size_is_taken() -> None:
    assert plan_memory(TINY, engine(kv_cache_memory_bytes=3 * GIB), CPU, "float32").num_blocks == 3 * GIB // TINY_BLOCK_BYTES


def test_a_given_number_of_blocks_is_taken() -> None:
    plan = plan_memory(TINY, engine(num_gpu_blocks_override=300, kv_cache_memory_bytes=GIB), CPU, "float32")
    assert plan.num_blocks == 300


def test_a_context_that_does_not_fit_is_shortened_unless_it_was_asked_for() -> None:
    plan = plan_memory(TINY, engine(num_gpu_blocks_override=100), CPU, "float32")
    assert plan.max_model_len == 1600
    assert plan.num_full_length_requests == 1.0
    assert plan.notes == ("max_model_len lowered from the model's 4,096 to 1,600: that is what fits into the KV cache",)
    with pytest.raises(
        EngineStartError, match=r"2,000 tokens does not fit into the 100 KV blocks: use --max-model-len 1600 or less"
    ):
        plan_memory(TINY, engine(num_gpu_blocks_override=100, max_model_len=2000), CPU, "float32")


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(
        EngineStartError, match=r"--max-model-len 4097 is longer than the model's context: it can be at most 4096"
    ):
        plan_memory(TINY, engine(max_model_len=4097), CPU, "float32")
    with pytest.raises(EngineStartError, match=r"--max-model-len must be at least 1, not 0"):
        plan_memory(TINY, engine(max_model_len=0), CPU, "float32")
    scaled = replace(TINY, rope=LinearRope(10_000.0, 2.0))
    assert plan_memory(scaled, engine(), CPU, "float32").max_model_len == 4096
    assert plan_memory(scaled, engine(max_model_len=8192), CPU, "float32").max_model_len == 8192


@pytest.mark.parametrize(
    ("settings", "memory", "message"),
    [
        (
            {},
            replace(H200, free_bytes=10 * GIB),
            r"not enough memory for the model: weights take 15.0 GiB .* 10.0 GiB of 140.0 GiB",
        ),
        (
            {"gpu_memory_utilization": 0.1},
            H200,
            r"not enough memory for a KV cache: .* --gpu-memory-utilization 0.1 allows 14.0 GiB",
        ),
        (
            {"kv_cache_memory_bytes": 130 * GIB},
            H200,
            r"--kv-cache-memory-bytes asks for 130.0 GiB of KV cache, but weights take",
        ),
        ({"kv_cache_memory_bytes": 100}, H200, r"--kv-cache-memory-bytes is too small: one KV block takes 2.0 MiB"),
        ({"num_gpu_blocks_override": 0}, H200, r"--num-gpu-blocks-override is too small: one KV block takes 2.0 MiB"),
        ({"num_gpu_blocks_override": 10**6}, H200, r"--num-gpu-blocks-override asks for 1.9 TiB of KV cache"),
    ],
)
def test_too_little_memory_is_said_with_numbers(settings: dict[str, Any], memory: DeviceMemory, message: str) -> None:
    with pytest.raises(EngineStartError, match=message):
        plan_memory(LLAMA_8B, engine(**settings), memory, "bfloat16")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(EngineStartError, match=r"--dtype must be auto, float32, bfloat16, float16; not 'int8'"):
        plan_memory(TINY, engine(), CPU, "int8")


def test_kv_groups_share_the_blocks_of_the_largest() -> None:
    mixed = replace(TINY, layer_windows=(None, None, None, 40))
    assert count_block_bytes(mixed, 16, "float32") == TINY_BLOCK_BYTES // 4 * 3
    assert plan_memory(mixed, engine(num_gpu_blocks_override=100), CPU, "float32").max_model_len == (100 - 8) * 16


@pytest.mark.parametrize("windows", [(None, None), (40, 40), (None, 40), (16, 500)])
@pytest.mark.parametrize("num_tokens", [1, 16, 17, 100, 333, 4096])
def test_a_request_needs_as_many_blocks_as_the_scheduler_will_say(windows: tuple[int | None, ...], num_tokens: int) -> None:
    config, settings = replace(TINY, num_layers=2, layer_windows=windows), engine()
    groups = [group.window for group in config.kv_groups]
    blocks = KVBlocks(num_blocks=1, block_size=16, windows=groups, max_step_tokens=64, caches_prefixes=True)
    assert blocks_for(config, settings, num_tokens) == blocks.num_blocks_for(num_tokens)


@pytest.mark.parametrize("windows", [(None, None), (40, 40), (None, 40), (16, 500)])
def test_the_longest_request_fits_and_one_block_more_does_not(windows: tuple[int | None, ...]) -> None:
    config, settings = replace(TINY, num_layers=2, layer_windows=windows), engine()
    for num_blocks in (0, 1, 5, 7, 30, 100, 255, 1000):
        longest = longest_request(config, settings, num_blocks, 4090)
        assert blocks_for(config, settings, longest) <= num_blocks
        assert longest == 4090 or blocks_for(config, settings, longest + 1) > num_blocks


def test_the_table_is_small_and_aligned() -> None:
    plan = plan_memory(LLAMA_8B, engine(max_num_batched_tokens=2048, max_num_seqs=256), H200, "bfloat16")
    lines = plan.table().splitlines()
    assert [re.split(r"  +", line)[0] for line in lines] == [
        "weights",
        "activations",
        "logits",
        "attention",
        "tables",
        "CUDA graphs",
        "CUDA libraries",
        "KV cache",
        "full-length requests",
    ]
    assert re.fullmatch(r"weights +15\.0 GiB  bfloat16", lines[0])
    assert re.fullmatch(r"KV cache +\d+\.\d GiB  [\d,]+ blocks of 16 tokens: [\d,]+ tokens", lines[-2])
    assert re.fullmatch(r"full-length requests +\d\.\d  of 131,072 tokens at once", lines[-1])
    assert all(re.match(r"[\w -]{20}  [\w. ]{9}  \S", line) for line in lines)
    assert max(map(len, lines)) < 100


def test_the_table_ends_with_the_notes() -> None:
    plan = plan_memory(TINY, engine(num_gpu_blocks_override=100), CPU, "float32")
    assert plan.table().splitlines()[-1] == plan.notes[0]


def test_without_graphs_nothing_is_set_aside_for_them() -> None:
    graphs, eager = (plan_memory(LLAMA_8B, engine(enforce_eager=eager), H200, "bfloat16") for eager in (False, True))
    assert (graphs.step.graphs, eager.step.graphs) == (CUDA_GRAPH_BYTES, 0)
    assert eager.num_blocks > graphs.num_blocks
    assert "CUDA graphs" not in eager.table()


def test_deterministic_attention_is_counted_and_bounded() -> None:
    """Every token of a step is a row of attention then: 16 parts of 32 heads of 128 float32 numbers at least."""
    plan = plan_memory(LLAMA_8B, engine(deterministic=True, max_num_batched_tokens=4096), H200, "bfloat16")
    assert plan.step.attention > 4096 * 16 * 32 * 128 * 4
    with pytest.raises(EngineStartError, match="--max-num-batched-tokens of at most 32256"):
        plan_memory(LLAMA_8B, engine(deterministic=True, max_num_batched_tokens=32768), H200, "bfloat16")


def test_on_cuda_a_step_takes_a_few_percent_of_the_card() -> None:
    step = count_step_memory(LLAMA_8B, EngineConfig(), dtype="bfloat16", device="cuda", max_model_len=131072)
    assert 0.01 * H200.total_bytes < step.total < 0.04 * H200.total_bytes


@pytest.mark.parametrize(
    ("settings", "memory"),
    [
        ({"gpu_memory_utilization": 0.1}, H200),
        ({"kv_cache_memory_bytes": 130 * GIB}, H200),
        ({"num_gpu_blocks_override": 10**6, "max_model_len": 8192}, H200),
        ({"max_num_batched_tokens": 65536, "max_num_seqs": 4096}, replace(H200, total_bytes=24 * GIB, free_bytes=23 * GIB)),
        ({"max_model_len": 100_000}, replace(H200, total_bytes=20 * GIB, free_bytes=int(19.5 * GIB))),
    ],
    ids=str,
)
def test_what_is_said_to_fit_fits(settings: dict[str, Any], memory: DeviceMemory) -> None:
    with pytest.raises(EngineStartError, match=r"(?:what would fit: |use )--") as error:
        plan_memory(LLAMA_8B, engine(**settings), memory, "bfloat16")
    said = dict(re.findall(r"--([\w-]+) ([\d.]+)\b(?! (?:allows|asks))", str(error.value).partition(" fit")[2]))
    assert said
    changes = {name.replace("-", "_"): float(value) if "." in value else int(value) for name, value in said.items()}
    plan = plan_memory(LLAMA_8B, engine(**(settings | changes)), memory, "bfloat16")
    assert plan.total_bytes <= memory.free_bytes


def test_another_dtype_is_proposed_where_that_helps() -> None:
    memory = DeviceMemory("cuda", 24 * GIB, 23 * GIB)
    with pytest.raises(EngineStartError, match=r"not enough memory for the model.*; what would fit: --dtype bfloat16"):
        plan_memory(LLAMA_8B, engine(max_model_len=2048), memory, "float32")
    with pytest.raises(EngineStartError, match=r"; no flag makes it fit: it needs a smaller model or more memory"):
        plan_memory(LLAMA_8B, engine(), DeviceMemory("cuda", 16 * GIB, 15 * GIB), "bfloat16")

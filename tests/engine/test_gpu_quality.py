"""On a GPU the tokens are those of transformers, and the same whichever of the fast paths produced them.

The baseline takes none of these: one request at a time, kernel by kernel, step by step, nothing cached. In float32 it is
compared with transformers, and everything else with it, in float32 and in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.engine import pacing, prefix_sharing, shared_prefixes
from penstock.engine.core import EngineCore
from tests.checkpoints import make_checkpoint
from tests.engine.generating import (
    Generated,
    assert_same_logprobs,
    assert_same_tokens,
    engine_for,
    generate,
    transformers_tokens,
)

pytestmark = pytest.mark.gpu

NUM_OUTPUT_TOKENS = 32
PROMPT_LENGTHS = (1, 3, 16, 17, 64, 127, 300, 701)
NUM_SHARED_TOKENS = 600
"""Of two more prompts."""
VOCAB_SIZE = 4096
TIES = {"float32": 5e-4, "bfloat16": 0.15}
"""Logprobs may differ by so much: products of different shapes add up in different orders, and bfloat16 logits of a standard
deviation of 1 are multiples of 1/64 and 1/128."""
MODELS = (
    ("llama_larger", "bfloat16"),
    ("llama_larger", "float32"),
    ("qwen3_larger", "bfloat16"),
    ("qwen2_larger_mixed_windows", "float32"),
    ("mistral_larger", "bfloat16"),
)
SETTINGS: dict[str, Any] = {
    "device": "cuda",
    "max_model_len": 1024,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 16,
    "num_gpu_blocks_override": 1024,
}
PLAIN: dict[str, Any] = {
    "enforce_eager": True,
    "async_scheduling": False,
    "enable_prefix_caching": False,
    "max_num_seqs": 1,
}


@dataclass(frozen=True)
class Variant:
    """A way to the same tokens."""

    settings: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    """Dotted name below penstock -> the value it has meanwhile."""
    captures_all: bool = False
    """All graphs are captured before the first request."""


NOT_GROUPED = {"engine.prefix_sharing.MIN_CHUNK_TOKENS": 1 << 30}
FULL_STEPS = {"engine.cost_model.MIN_PROMPT_TOKENS": SETTINGS["max_num_batched_tokens"]}
"""All prompts that find room begin at once, to run out of blocks together."""
ONE_STEP = {"engine.pacing.MAX_DECODE_STEPS": 1}
VARIANTS = {
    "all there is": Variant(captures_all=True),
    "eager": Variant({"enforce_eager": True}),
    "eager, single steps": Variant({"enforce_eager": True}, ONE_STEP),
    "synchronous": Variant({"async_scheduling": False}),
    "no prefix cache": Variant({"enable_prefix_caching": False}),
    "alone": Variant({"max_num_seqs": 1}),
    "three at a time": Variant({"max_num_seqs": 3}),
    "chunks of 40": Variant({"max_num_batched_tokens": 40}),
    "chunks of 200": Variant({"max_num_batched_tokens": 200}, captures_all=True),
    "single steps": Variant({}, ONE_STEP),
    "eight steps ahead": Variant({}, {"engine.pacing.RUN_AHEAD_S": 1e6}),
    "context not split": Variant({}, {"kernels.triton_decode_plan.MAX_SPLITS": 1}),
    "prefixes not grouped": Variant({}, NOT_GROUPED),
    "blocks of 64": Variant({"block_size": 64}),
    "preempted": Variant({"num_gpu_blocks_override": 84}, FULL_STEPS),
}


def make_prompts() -> list[list[int]]:
    """Mixed lengths, at block borders and off them, and two that begin alike."""
    random = np.random.default_rng(5)
    prompts = [random.integers(3, VOCAB_SIZE, size).tolist() for size in PROMPT_LENGTHS]
    shared = random.integers(3, VOCAB_SIZE, NUM_SHARED_TOKENS).tolist()
    return [*prompts, [*shared, 7, 8, 9], [*shared, 11]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="module")
def baseline(checkpoint: Callable[[str], Path]) -> Callable[[str, str], list[Generated]]:
    made: dict[tuple[str, str], list[Generated]] = {}

    def get(name: str, dtype: str) -> list[Generated]:
        if (name, dtype) not in made:
            core = engine_for(checkpoint(name), **{**SETTINGS, **PLAIN}, dtype=dtype)
            made[name, dtype] = generate(core, make_prompts(), max_tokens=NUM_OUTPUT_TOKENS, logprobs=20)
        return made[name, dtype]

    return get


@pytest.fixture(autouse=True)
def memory_goes_back() -> Iterator[None]:
    yield
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()


def engine_of(variant: Variant, model_dir: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> EngineCore:
    for name, value in variant.constants.items():
        monkeypatch.setattr(f"penstock.{name}", value)
    # What other test processes allocate during a capture would count as the graphs'.
    monkeypatch.setattr("penstock.engine.graphs.GRAPH_MEMORY_BYTES", 1 << 50)
    settings = {**SETTINGS, **variant.settings}
    if "mixed" in model_dir.name and "num_gpu_blocks_override" in variant.settings:
        settings["num_gpu_blocks_override"] *= 2  # one pool for two groups of layers
    core = engine_for(model_dir, **settings, dtype=dtype)
    if variant.captures_all:
        finish_captures(core)
    return core


def finish_captures(core: EngineCore) -> None:
    while core.on_idle():
        pass


@pytest.mark.parametrize("name", sorted({name for name, _ in MODELS}))
def test_plain_tokens_and_logprobs_in_float32_are_those_of_transformers(
    name: str, checkpoint: Callable[[str], Path], baseline: Callable[[str, str], list[Generated]]
) -> None:
    prompts, results = make_prompts(), baseline(name, "float32")
    expected = transformers_tokens(checkpoint(name), prompts, NUM_OUTPUT_TOKENS, device="cuda")
    for result, theirs in zip(results, expected, strict=True):
        assert_same_tokens(result, theirs, tie=TIES["float32"])
        assert_same_logprobs(result, theirs, tolerance=TIES["float32"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("name", "dtype"), MODELS)
def test_tokens_do_not_depend_on_how_the_engine_gets_there(
    name: str,
    dtype: str,
    variant: str,
    checkpoint: Callable[[str], Path],
    baseline: Callable[[str, str], list[Generated]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = baseline(name, dtype)
    core = engine_of(VARIANTS[variant], checkpoint(name), dtype, monkeypatch)
    for wanted in ({}, {"logprobs": 5}):  # the second time with a warm prefix cache, where there is one
        results = generate(core, make_prompts(), max_tokens=NUM_OUTPUT_TOKENS, **wanted)
        for result, theirs in zip(results, expected, strict=True):
            assert_same_tokens(result, theirs, tie=TIES[dtype])
            if wanted:
                assert_same_logprobs(result, theirs, tolerance=TIES[dtype])
    core.scheduler.check_integrity()
    core.scheduler.blocks.check_idle()
    if variant != "preempted" or name.startswith(("llama", "qwen3")):  # windows need few blocks
        assert (core.scheduler.metrics.num_preemptions > 0) == (variant == "preempted")


@pytest.mark.parametrize("name", ["llama_larger", "qwen3_larger", "qwen2_larger_mixed_windows"])
def test_keys_that_several_requests_share_are_read_once_and_change_nothing(
    name: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make_prompts()[-1]
    prompts = [shared, *([*shared[:length], length] for length in (300, 512, 513, 560, 599, 600)), [5] * 40]
    found = []

    def find_and_note(*arguments: Any, **settings: Any) -> Any:
        found.append(shared_prefixes.find_shared_chunks(*arguments, **settings))
        return found[-1]

    monkeypatch.setattr(prefix_sharing, "find_shared_chunks", find_and_note)
    results = []
    for variant in (Variant(captures_all=True), Variant({}, NOT_GROUPED)):
        core = engine_of(variant, checkpoint(name), "float32", monkeypatch)
        generate(core, [shared], max_tokens=1)
        for _ in range(2):  # the second time in graphs that have room for what is shared
            results.append(generate(core, prompts, max_tokens=NUM_OUTPUT_TOKENS, logprobs=5))
            assert results[-1][0].num_cached_tokens == 592
            finish_captures(core)
    for result in results[:-1]:
        for grouped, expected in zip(result, results[-1], strict=True):
            assert_same_tokens(grouped, expected, tie=TIES["float32"])
            assert_same_logprobs(grouped, expected, tolerance=TIES["float32"])
    assert any(arrays is not None for arrays in found)


@pytest.mark.parametrize(("name", "dtype"), MODELS)
def test_deterministic_tokens_and_logprobs_are_bitwise_the_same_alone_and_in_a_batch(
    name: str, dtype: str, checkpoint: Callable[[str], Path]
) -> None:
    settings = {**SETTINGS, "deterministic": True, "enable_prefix_caching": False}
    core = engine_for(checkpoint(name), **settings, dtype=dtype)
    prompts = make_prompts()[:6]  # computed in one step, all of them together
    together = generate(core, prompts, max_tokens=NUM_OUTPUT_TOKENS, logprobs=5)
    for prompt, expected in zip(prompts, together, strict=True):
        (alone,) = generate(core, [prompt], max_tokens=NUM_OUTPUT_TOKENS, logprobs=5)
        assert alone == expected


@pytest.mark.parametrize(("name", "dtype"), MODELS[:2])
def test_drawn_tokens_are_the_same_with_graphs_and_without_ahead_and_step_by_step(
    name: str, dtype: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token hangs on one number per request and position; where two candidates are equally good, tokens may differ."""
    sampling: list[dict[str, Any]] = [
        {"temperature": 0.7},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 20, "min_p": 0.01},
        {"temperature": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.1},
    ]
    plain = engine_for(checkpoint(name), **{**SETTINGS, **PLAIN}, dtype=dtype)
    monkeypatch.setattr(pacing, "RUN_AHEAD_S", 1e6)
    fast = engine_of(Variant(captures_all=True), checkpoint(name), dtype, monkeypatch)
    num_alike, num_compared = 0, 0
    for fields in sampling:
        expected = generate(plain, make_prompts(), max_tokens=8, **fields)
        for result, theirs in zip(generate(fast, make_prompts(), max_tokens=8, **fields), expected, strict=True):
            num_compared += 1
            num_alike += result.token_ids == theirs.token_ids
    assert num_alike >= (0.95 if dtype == "float32" else 0.6) * num_compared, f"{num_alike} of {num_compared}"

"""Greedy tokens in float32 are those of transformers, whatever the engine does to get there faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.engine import pacing
from penstock.engine.core import RequestOutput
from penstock.engine.plan import StepPlan
from penstock.ipc.messages import FinishReason
from penstock.kernels import ops, reference_attention
from tests.checkpoints import CHECKPOINTS, make_checkpoint
from tests.engine.generating import (
    Generated,
    assert_same_tokens,
    engine_for,
    generate,
    submission,
    transformers_tokens,
)

NUM_OUTPUT_TOKENS = 64
PROMPT_LENGTHS = (1, 3, 16, 17, 31, 48, 70)


def make_prompts(seed: int = 0, vocab_size: int = 300) -> list[list[int]]:
    """Prompts of mixed lengths, at block borders and off them."""
    random = np.random.default_rng(seed)
    return [random.integers(3, vocab_size, size).tolist() for size in PROMPT_LENGTHS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_batched_greedy_tokens_and_logprobs_are_those_of_transformers(name: str, checkpoint: Callable[[str], Path]) -> None:
    model_dir, prompts = checkpoint(name), make_prompts()
    results = generate(engine_for(model_dir), prompts, max_tokens=NUM_OUTPUT_TOKENS, logprobs=5)
    for result, expected in zip(results, transformers_tokens(model_dir, prompts, NUM_OUTPUT_TOKENS), strict=True):
        assert_same_tokens(result, expected)
        for mine, theirs in zip(result.logprobs, expected.logprobs, strict=True):
            np.testing.assert_allclose(mine, theirs[: len(mine)], atol=1e-4)


VARIANTS: dict[str, dict[str, Any]] = {
    "no prefix cache": {"enable_prefix_caching": False},
    "chunks of 16": {"max_num_batched_tokens": 16},
    "chunks of 64": {"max_num_batched_tokens": 64},
    "three at a time": {"max_num_seqs": 3},
    "synchronous": {"async_scheduling": False},
    "blocks of 32": {"block_size": 32},
    "forced preemption": {"num_gpu_blocks_override": 14, "max_model_len": 160},
    "forced preemption, synchronous, no cache": {
        "num_gpu_blocks_override": 14,
        "max_model_len": 160,
        "async_scheduling": False,
        "enable_prefix_caching": False,
    },
}
VARIED = {"llama": 1, "mistral": 1, "qwen2_mixed_windows": 2}
"""Checkpoints and their numbers of KV groups."""


@pytest.fixture(scope="module")
def baseline(checkpoint: Callable[[str], Path]) -> Callable[[str], list[Generated]]:
    made: dict[str, list[Generated]] = {}

    def get(name: str) -> list[Generated]:
        if name not in made:
            made[name] = generate(engine_for(checkpoint(name)), make_prompts(), logprobs=5)
        return made[name]

    return get


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_do_not_depend_on_how_the_engine_gets_there(
    name: str, variant: str, checkpoint: Callable[[str], Path], baseline: Callable[[str], list[Generated]]
) -> None:
    settings = dict(VARIANTS[variant])
    if "num_gpu_blocks_override" in settings:
        settings["num_gpu_blocks_override"] *= VARIED[name]
    core = engine_for(checkpoint(name), **settings)
    for _ in range(2):  # the second time with a warm prefix cache, where there is one
        for result, expected in zip(generate(core, make_prompts()), baseline(name), strict=True):
            assert_same_tokens(result, expected)
    assert (core.scheduler.metrics.num_preemptions > 0) == variant.startswith("forced preemption")


def test_the_second_time_the_prompt_comes_from_the_prefix_cache(checkpoint: Callable[[str], Path]) -> None:
    core = engine_for(checkpoint("llama"))
    prompts = make_prompts()
    first = generate(core, prompts)
    second = generate(core, prompts)
    assert [result.num_cached_tokens for result in first] == [0] * len(prompts)
    assert [result.num_cached_tokens for result in second] == [(length - 1) // 16 * 16 for length in PROMPT_LENGTHS]


@pytest.mark.parametrize("name", VARIED)
def test_running_ahead_gives_the_same_tokens(
    name: str,
    checkpoint: Callable[[str], Path],
    baseline: Callable[[str], list[Generated]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pacing, "RUN_AHEAD_S", 1e6)
    core = engine_for(checkpoint(name))
    plan_step, numbers_of_steps = core.scheduler.plan, set()

    def plan() -> StepPlan | None:
        planned = plan_step()
        numbers_of_steps.add(0 if planned is None else planned.num_decode_steps)
        return planned

    monkeypatch.setattr(core.scheduler, "plan", plan)
    for result, expected in zip(generate(core, make_prompts()), baseline(name), strict=True):
        assert_same_tokens(result, expected)
    assert max(numbers_of_steps) == pacing.MAX_DECODE_STEPS


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.3, "top_k": 7, "frequency_penalty": 0.4}]
)
def test_a_seeded_request_gets_the_same_tokens_alone_and_in_any_batch(
    sampling: dict[str, Any], checkpoint: Callable[[str], Path]
) -> None:
    core, prompts = engine_for(checkpoint("qwen3"), max_num_batched_tokens=50), make_prompts()
    together = generate(core, prompts, seed=1234, logprobs=5, **sampling)
    for prompt, expected in zip(prompts, together, strict=True):
        (alone,) = generate(core, [prompt], seed=1234, **sampling)
        assert_same_tokens(alone, expected)


def test_prompt_logprobs_are_those_of_transformers(checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    model_dir, prompts = checkpoint("llama"), make_prompts()
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    results = generate(engine_for(model_dir, max_num_batched_tokens=20), prompts, max_tokens=1, prompt_logprobs=2)
    for prompt, result in zip(prompts, results, strict=True):
        with torch.inference_mode():
            logprobs = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        expected = [float(logprobs[i, prompt[i + 1]]) for i in range(len(prompt) - 1)]
        np.testing.assert_allclose([row[0] for row in result.prompt_logprobs], expected, atol=1e-4)


def test_a_step_that_runs_out_of_memory_spoils_nothing_that_others_find_in_the_prefix_cache(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = engine_for(checkpoint("llama"), max_num_batched_tokens=16)
    first, second = (np.random.default_rng(seed).integers(3, 300, 49).tolist() for seed in (1, 2))
    (expected,) = generate(core, [first])
    calls: list[Any] = []

    def fail_once(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("none left")
        return reference_attention.paged_attention(*arguments)

    # The second request takes over the first one's slot; its second chunk is launched before the first one's failure shows.
    monkeypatch.setattr(ops, "paged_attention", fail_once)
    core.submit("second", submission(2, second))
    outputs: list[RequestOutput] = []
    while core.has_work:
        outputs += core.step()
    assert [(output.key, output.finish_reason) for output in outputs] == [("second", FinishReason.ERROR)]
    assert len(calls) > 1
    (again,) = generate(core, [first])
    assert again.token_ids == expected.token_ids

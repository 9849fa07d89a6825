"""With --deterministic a request's tokens and logprobs are the same to the last bit, whatever else runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.engine.core import EngineCore
from penstock.engine.models import build_model
from penstock.kernels.products import INVARIANT
from tests.checkpoints import make_checkpoint
from tests.engine.generating import Generated, engine_for, generate
from tests.engine.runner_driver import DRAWN, Driver, Request, requests_for
from tests.engine.runner_driver import make_prompts as make_driver_prompts
from tests.engine.tiny_model import make_model, tiny_config

CPU_PROMPT_LENGTHS = (1, 3, 16, 17, 31, 48, 70)
CUDA_PROMPT_LENGTHS = (1, 3, 17, 64, 127, 300, 701)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.9},
    "filtered": {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.001},
    "penalized": {"temperature": 1.1, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3},
}
CPU_SETTINGS: dict[str, Any] = {"max_model_len": 160}
MODELS_IN_SHORT = (("llama", "bfloat16"), ("llama_biases", "float32"), ("mistral", "float32"), ("qwen3", "float32"))
"""With one variant each; other models with all of them."""
CPU_VARIANTS: dict[str, dict[str, Any]] = {
    "all at once": {},
    "chunks of 16": {"max_num_batched_tokens": 16},
    "chunks of 5, three at a time": {"max_num_batched_tokens": 5, "max_num_seqs": 3},
    "no prefix cache": {"enable_prefix_caching": False},
    "synchronous": {"async_scheduling": False},
    "preempted": {"num_gpu_blocks_override": 11},
    "preempted, chunks of 16, no cache": {
        "num_gpu_blocks_override": 11,
        "max_num_batched_tokens": 16,
        "enable_prefix_caching": False,
    },
}
CUDA_SETTINGS: dict[str, Any] = {
    "device": "cuda",
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "num_gpu_blocks_override": 1024,
}
CUDA_MODELS = (
    ("llama_larger", "bfloat16"),
    ("qwen3_larger", "bfloat16"),
    ("mistral_larger", "float32"),
    ("qwen2_larger_mixed_windows", "bfloat16"),
)
CUDA_VARIANTS: dict[str, dict[str, Any]] = {
    "all at once": {},
    "eager": {"enforce_eager": True},
    "chunks of 40": {"max_num_batched_tokens": 40},
    "chunks of 200, three at a time": {"max_num_batched_tokens": 200, "max_num_seqs": 3},
    "no prefix cache": {"enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 80},
}


def make_prompts(lengths: tuple[int, ...]) -> list[list[int]]:
    """Random prompts; the last two begin alike."""
    random = np.random.default_rng(9)
    prompts = [random.integers(3, 300, length).tolist() for length in lengths]
    return [*prompts, [*prompts[-1][:-2], 7, 8]]


def bits(result: Generated) -> tuple[list[int], list[bytes], list[bytes]]:
    """Tokens, and the float32 numbers that came with them as they are in memory."""

    def raw(rows: list[list[float]]) -> list[bytes]:
        return [np.array(row, np.float32).tobytes() for row in rows]

    assert result.logprobs
    return result.token_ids, raw(result.logprobs), raw(result.prompt_logprobs)


def run_all(core: EngineCore, prompts: list[list[int]], num_tokens: int, *, alone: bool) -> list[Any]:
    """What comes out for all prompts and ways of sampling, one request after the other or together."""
    results = []
    for name, sampling in SAMPLINGS.items():
        scored = {"prompt_logprobs": 2} if name == "greedy" else {}
        wanted = {"max_tokens": num_tokens, "seed": 1234, "logprobs": 4, **sampling, **scored}
        groups = [[prompt] for prompt in prompts] if alone else [prompts]
        results += [bits(result) for group in groups for result in generate(core, group, **wanted)]
    return results


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[[str], Path]) -> Callable[[str, str, str], list[Any]]:
    """Each request by itself, its prompt in one piece, nothing cached."""
    made: dict[tuple[str, str, str], list[Any]] = {}

    def get(name: str, dtype: str, device: str) -> list[Any]:
        if (name, dtype, device) not in made:
            made[name, dtype, device] = outcome(checkpoint(name), dtype, device, {"enable_prefix_caching": False}, alone=True)
        return made[name, dtype, device]

    return get


@pytest.fixture(autouse=True)
def memory_goes_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        import gc

        gc.collect()
        torch.cuda.empty_cache()


def outcome(model_dir: Path, dtype: str, device: str, settings: dict[str, Any], *, alone: bool = False) -> list[Any]:
    """Of a fresh engine; together the requests run twice, the second time with a warm prefix cache where there is one."""
    on_cuda = device == "cuda"
    settings = {**(CUDA_SETTINGS if on_cuda else CPU_SETTINGS), **settings}
    is_preempted = settings.get("num_gpu_blocks_override", 1024) < 100
    if "mixed" in model_dir.name and is_preempted:
        settings["num_gpu_blocks_override"] *= 2  # one pool for two groups of layers
    core = engine_for(model_dir, dtype=dtype, **{"deterministic": True, **settings})
    while on_cuda and not alone and core.on_idle():
        pass  # graphs of all sizes
    prompts = make_prompts(CUDA_PROMPT_LENGTHS if on_cuda else CPU_PROMPT_LENGTHS)
    num_tokens = 32 if on_cuda else 20
    results = run_all(core, prompts, num_tokens, alone=alone)
    if not alone:
        again = run_all(core, prompts, num_tokens, alone=False)
        if settings.get("deterministic", True):
            assert again == results
    assert (core.scheduler.metrics.num_preemptions > 0) == is_preempted
    return results


@pytest.mark.parametrize(
    ("name", "dtype", "variant"),
    [
        *((name, "float32", variant) for name in ("llama", "qwen2_mixed_windows") for variant in CPU_VARIANTS),
        *((name, dtype, "preempted, chunks of 16, no cache") for name, dtype in MODELS_IN_SHORT),
    ],
)
def test_same_bits_whatever_else_runs(
    name: str,
    dtype: str,
    variant: str,
    checkpoint: Callable[[str], Path],
    alone: Callable[[str, str, str], list[Any]],
) -> None:
    assert outcome(checkpoint(name), dtype, "cpu", CPU_VARIANTS[variant]) == alone(name, dtype, "cpu")


def padded_or_not(requests: list[Request], *, pads: bool, chunk: int | None, together: bool) -> list[Any]:
    """Tokens and logprobs of a tiny model with odd sizes and windows."""
    config = tiny_config((None, 5, 9))
    model = build_model(config, device="cpu", dtype=torch.float32, products=INVARIANT)
    model.load_state_dict(make_model(config).state_dict())
    driver = Driver((None, 5, 9), model=model, deterministic=True)
    driver.runner._pads = pads
    driver.poison_kv_cache()
    for group in [requests] if together else [[request] for request in requests]:
        driver.run(group, chunk=chunk)
    reported = [[result.logprobs[0].logprobs for result in request.results if result.logprobs] for request in requests]
    return [(request.output, np.array(rows, np.float32).tobytes()) for request, rows in zip(requests, reported, strict=True)]


@pytest.mark.parametrize("chunk", [None, 7])
def test_same_bits_in_padded_steps_with_poison_in_the_cache(chunk: int | None) -> None:
    prompts, settings = make_driver_prompts(), [{**settings, "logprobs": 2} for settings in DRAWN]
    expected = padded_or_not(requests_for(prompts, *settings), pads=False, chunk=None, together=False)
    assert all(tokens for tokens, _ in expected)
    assert padded_or_not(requests_for(prompts, *settings), pads=True, chunk=chunk, together=True) == expected


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 16}], ids=["batched", "chunked"])
def test_without_the_mode_bits_differ(
    settings: dict[str, Any], checkpoint: Callable[[str], Path], alone: Callable[[str, str, str], list[Any]]
) -> None:
    """Else the mode could go."""
    plain = outcome(checkpoint("llama"), "float32", "cpu", {"deterministic": False, "enable_prefix_caching": False}, alone=True)
    assert outcome(checkpoint("llama"), "float32", "cpu", {"deterministic": False, **settings}) != plain


@pytest.mark.gpu
@pytest.mark.parametrize("variant", CUDA_VARIANTS)
@pytest.mark.parametrize(("name", "dtype"), CUDA_MODELS)
def test_same_bits_whatever_else_runs_on_a_gpu(
    name: str,
    dtype: str,
    variant: str,
    checkpoint: Callable[[str], Path],
    alone: Callable[[str, str, str], list[Any]],
) -> None:
    assert outcome(checkpoint(name), dtype, "cuda", CUDA_VARIANTS[variant]) == alone(name, dtype, "cuda")

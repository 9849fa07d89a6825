"""Times of the sampling kernels in CUDA graphs, and of other constants for them, each checked against the twins first.

    python -m scripts.tune_sampling

Prints microseconds, and GB/s as if each logit were read once and nothing else moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from penstock.kernels import ops, reference_sampling, triton_sampling, triton_thresholds
from scripts.graph_timing import Call, graph_microseconds, num_copies

DEVICE = torch.device("cuda")
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.8, 50, 0.95, 0.0
NUM_TOP_LOGPROBS = 5
BATCHES = [(1, 151_936), (32, 151_936), (256, 151_936), (1024, 151_936), (1, 128_256), (256, 128_256)]
TUNED_SIZES = [(1, 151_936), (256, 151_936)]
SAMPLING_TILES = [(2048, 4), (4096, 4), (4096, 8), (8192, 8)]
"""(TILE_SIZE, NUM_WARPS) of triton_sampling."""
SEARCHES = [(1024, 4), (2048, 8), (4096, 8)]
"""(SEARCH_BLOCK_SIZE, NUM_SEARCH_WARPS) of triton_thresholds."""
MAX_SCORE_ERROR = 1e-4


@dataclass(frozen=True)
class Batch:
    """Rows of logits with a few likely tokens each, as a language model's, and everybody's parameters by slot."""

    logits: Tensor
    slots: Tensor
    seeds: Tensor
    positions: Tensor
    counts: Tensor | None

    def parameter(self, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((len(self.slots),), value, dtype=dtype, device=DEVICE)


def make_batch(num_rows: int, vocab_size: int, *, has_counts: bool = False) -> Batch:
    logits = torch.randn(num_rows, vocab_size, device=DEVICE).mul_(2.5)
    logits[:, :: vocab_size // 50] += 10.0
    counts = None
    if has_counts:
        counts = torch.zeros(num_rows, vocab_size, dtype=torch.int32, device=DEVICE)
        counts[:, torch.randint(vocab_size, (1000,), device=DEVICE)] = 3
    return Batch(
        logits.bfloat16(),
        torch.arange(num_rows, dtype=torch.int32, device=DEVICE),
        torch.randint(2**62, (num_rows,), device=DEVICE),
        torch.arange(num_rows, dtype=torch.int32, device=DEVICE),
        counts,
    )


def greedy(batch: Batch) -> Call:
    return partial(ops.sample_tokens, batch.logits, batch.slots, batch.parameter(0.0), batch.seeds, batch.positions, None)


def random(batch: Batch) -> Call:
    return partial(
        ops.sample_tokens, batch.logits, batch.slots, batch.parameter(TEMPERATURE), batch.seeds, batch.positions, None
    )


def thresholds(batch: Batch, top_k: int = TOP_K, top_p: float = TOP_P) -> Call:
    top_ks = batch.parameter(top_k, torch.int32)
    parameters = (batch.parameter(TEMPERATURE), top_ks, batch.parameter(top_p), batch.parameter(MIN_P))
    return partial(ops.logit_thresholds_by_slot, batch.logits, batch.slots, *parameters)


def filtered(batch: Batch) -> Call:
    find, temperatures = thresholds(batch), batch.parameter(TEMPERATURE)

    def call() -> object:
        found: Any = find()
        return ops.sample_tokens(batch.logits, batch.slots, temperatures, batch.seeds, batch.positions, found)

    return call


def penalties(batch: Batch) -> Call:
    rows, penalty = torch.arange(len(batch.slots), device=DEVICE), batch.parameter(1.1)

    def call() -> object:
        assert batch.counts is not None
        logits = ops.editable_logits(batch.logits)
        ops.apply_penalties(logits, rows, batch.counts, rows, penalty, penalty, penalty)
        return logits

    return call


def logprobs(batch: Batch, num_top: int = NUM_TOP_LOGPROBS) -> Call:
    return partial(ops.top_logprobs, batch.logits, batch.slots.long(), num_top)


KINDS: dict[str, Callable[[Batch], Call]] = {
    "greedy": greedy,
    "random": random,
    "thresholds k and p": thresholds,
    "thresholds p": partial(thresholds, top_k=0),
    "thresholds k": partial(thresholds, top_p=1.0),
    "thresholds off": partial(thresholds, top_k=0, top_p=1.0),
    "filtered": filtered,
    "penalties": penalties,
    "logprobs, top 0": partial(logprobs, num_top=0),
    f"logprobs, top {NUM_TOP_LOGPROBS}": logprobs,
}


def check(vocab_size: int) -> None:
    """A few rows against the twins."""
    batch = make_batch(9, vocab_size)
    found: Any = thresholds(batch)()
    top_k, top_p = batch.parameter(TOP_K, torch.int32), batch.parameter(TOP_P)
    parameters = (batch.slots, batch.parameter(TEMPERATURE))
    twins = reference_sampling.logit_thresholds_by_slot(batch.logits, *parameters, top_k, top_p, batch.parameter(MIN_P))
    assert torch.equal(found, twins), (found, twins)
    for cuts in (None, found):
        tokens, is_valid = ops.sample_tokens(batch.logits, *parameters, batch.seeds, batch.positions, cuts)
        assert is_valid.all()
        scores = batch.logits.double() / TEMPERATURE + reference_sampling.gumbel_noise(batch.seeds, batch.positions, vocab_size)
        if cuts is not None:
            scores[batch.logits.float() < cuts[:, None]] = -torch.inf
        assert (scores.amax(1) - scores.gather(1, tokens[:, None])[:, 0]).max() < MAX_SCORE_ERROR
    tokens, _ = ops.sample_tokens(batch.logits, batch.slots, batch.parameter(0.0), batch.seeds, batch.positions, None)
    assert torch.equal(tokens, batch.logits.argmax(1))


def report(name: str, make: Callable[[Batch], Call], num_rows: int, vocab_size: int) -> None:
    """One line of the table."""
    num_bytes = 2 * num_rows * vocab_size
    needs_counts = make is penalties
    batches = [make_batch(num_rows, vocab_size, has_counts=needs_counts) for _ in range(min(num_copies(num_bytes), 16))]
    microseconds = graph_microseconds([make(batch) for batch in batches])
    print(
        f"{name:36} {num_rows:5} x {vocab_size:6} {microseconds:9.1f} us {num_bytes / microseconds / 1e3:8.0f} GB/s", flush=True
    )


def with_constants(module: ModuleType, **constants: int) -> dict[str, int]:
    """Sets the module's constants and returns what they were."""
    before = {name: getattr(module, name) for name in constants}
    for name, value in constants.items():
        setattr(module, name, value)
    return before


def main() -> None:
    torch.manual_seed(0)
    for vocab_size in sorted({vocab_size for _, vocab_size in BATCHES}):
        check(vocab_size)
    for num_rows, vocab_size in BATCHES:
        for name, make in KINDS.items():
            report(name, make, num_rows, vocab_size)
    for tile_size, num_warps in SAMPLING_TILES:
        before = with_constants(triton_sampling, TILE_SIZE=tile_size, NUM_WARPS=num_warps)
        for make in (greedy, random):
            for sizes in TUNED_SIZES:
                report(f"{make.__name__}, tile {tile_size}, {num_warps} warps", make, *sizes)
        with_constants(triton_sampling, **before)
    for block_size, num_warps in SEARCHES:
        before = with_constants(triton_thresholds, SEARCH_BLOCK_SIZE=block_size, NUM_SEARCH_WARPS=num_warps)
        for sizes in TUNED_SIZES:
            report(f"thresholds, block {block_size}, {num_warps} warps", thresholds, *sizes)
        with_constants(triton_thresholds, **before)


if __name__ == "__main__":
    main()

"""Log-probabilities of prompt tokens, from the hidden states of the chunk that was just computed.

Position p's logits speak of the token at p + 1, so a chunk yields those of its own positions whose successor is still prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import ops
from .batch import Batch
from .sampler import TopLogprobs
from .slots import HostSlots

MAX_LOGITS_ELEMENTS = 1 << 24
"""Bounds the logits of one round to 64 MiB, and their log-softmax to as much again."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One request's share of the scored rows."""

    index: int
    """Row of the plan."""
    num_positions: int
    num_top: int


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """Rows of the batch whose next token is scored, request by request."""

    segments: tuple[Segment, ...]
    arrays: dict[str, NDArray[np.generic]]

    @property
    def num_top(self) -> int:
        """Most top tokens any of the requests wants."""
        return max(segment.num_top for segment in self.segments)


def plan_scoring(batch: Batch, slots: HostSlots) -> ScoringPlan:
    """Finds the chunks of requests that asked for prompt logprobs."""
    segments: list[Segment] = []
    rows: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int64]] = []
    first = len(batch.decode_slots)
    for row, chunk in enumerate(batch.chunks, first):
        info = slots.infos[chunk.slot]
        num_top, start, num_tokens = info.sampling.prompt_logprobs, chunk.num_computed_tokens, len(chunk.token_ids)
        if num_top is not None:
            scored = info.prompt_token_ids[start + 1 : start + 1 + num_tokens]
            if len(scored):
                segments.append(Segment(batch.index(row), len(scored), num_top))
                rows.append(np.arange(first, first + len(scored)))
                targets.append(np.asarray(scored, np.int64))
        first += num_tokens
    if not segments:
        return ScoringPlan((), {})
    return ScoringPlan(tuple(segments), {"scored_rows": np.concatenate(rows), "scored_targets": np.concatenate(targets)})


def score(
    hidden: Tensor, logits_of: Callable[[Tensor], Tensor], plan: ScoringPlan, arrays: dict[str, Tensor], vocab_size: int
) -> tuple[TopLogprobs, Tensor]:
    """Scores of all rows of the plan, and bool [n]: whether the logits were finite. Memory is bounded whatever n."""
    rounds, valid = [], []
    rows_per_round = max(1, MAX_LOGITS_ELEMENTS // vocab_size)
    for start in range(0, len(arrays["scored_rows"]), rows_per_round):
        part = slice(start, start + rows_per_round)
        logits = logits_of(hidden.index_select(0, arrays["scored_rows"][part])).float()
        valid.append(torch.isfinite(logits.amax(dim=1)))
        rounds.append(ops.top_logprobs(logits, arrays["scored_targets"][part], plan.num_top))
    token_ids, logprobs, ranks = (torch.cat(parts) for parts in zip(*rounds, strict=True))
    return TopLogprobs(token_ids, logprobs, ranks), torch.cat(valid)

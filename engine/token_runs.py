"""Runs of consecutive output tokens of many requests as flat arrays, and how the runs of several steps become one each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TokenRuns:
    """n runs. int32 arrays."""

    request_ids: NDArray[np.int32]
    """[n]."""
    positions: NDArray[np.int32]
    """[n]: the place of a run's first token among its request's output tokens."""
    counts: NDArray[np.int32]
    """[n]: tokens of each run; may be 0."""
    token_ids: NDArray[np.int32]
    """[sum of counts], run by run."""

    def __len__(self) -> int:
        return len(self.request_ids)

    def part(self, start: int, end: int) -> TokenRuns:
        """Runs start .. end - 1."""
        first, last = int(self.counts[:start].sum()), int(self.counts[:end].sum())
        rows = slice(start, end)
        return TokenRuns(self.request_ids[rows], self.positions[rows], self.counts[rows], self.token_ids[first:last])


def one_length_runs(request_ids: NDArray[np.int32], positions: NDArray[np.int32], token_ids: NDArray[np.int32]) -> TokenRuns:
    """Of tokens [tokens of each, n]; the tokens are copied."""
    num_each, num_runs = token_ids.shape
    return TokenRuns(request_ids, positions, np.full(num_runs, num_each, np.int32), token_ids.T.flatten())


def chain(parts: Sequence[TokenRuns]) -> TokenRuns:
    """All runs, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return TokenRuns(
        np.concatenate([part.request_ids for part in parts]),
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.token_ids for part in parts]),
    )


def join(runs: TokenRuns) -> TokenRuns:
    """One run a request, ids rising. The runs of a request must be without gaps and overlaps."""
    keys = (runs.request_ids.astype(np.int64) << 32) + runs.positions
    order = np.argsort(keys, kind="stable")
    request_ids, counts = runs.request_ids[order], runs.counts[order]
    is_first = np.empty(len(order), np.bool_)
    is_first[:1] = True
    np.not_equal(request_ids[1:], request_ids[:-1], out=is_first[1:])
    firsts = np.flatnonzero(is_first)
    starts = (np.cumsum(runs.counts) - runs.counts)[order]
    new_starts = np.cumsum(counts) - counts
    sources = np.repeat(starts - new_starts, counts) + np.arange(len(runs.token_ids))
    return TokenRuns(
        request_ids[firsts],
        runs.positions[order][firsts],
        np.add.reduceat(counts, firsts, dtype=np.int32) if len(firsts) else counts,
        runs.token_ids[sources],
    )

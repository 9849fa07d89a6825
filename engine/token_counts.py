"""How often each token occurs in the requests that have penalties: on the device, a row per such request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import ops
from .plan import StartedRequest


class TokenCounts:
    """Counts int32 [rows, vocab_size] in the form of ops.apply_penalties, and which slot has which row.

    Grows by doubling up to a row per slot, and only when penalties are in use; a row goes back when its slot starts another
    request.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._max_rows = max_rows
        self._row_of_slot: dict[int, int] = {}
        self.counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)

    def take_row(self, slot: int) -> int:
        """The slot's row, its content stale until `reset`. Raises torch.OutOfMemoryError where there is no room to grow."""
        if slot in self._row_of_slot:
            return self._row_of_slot[slot]
        num_rows, vocab_size = self.counts.shape
        free = set(range(num_rows)) - set(self._row_of_slot.values())
        if not free:
            grown = self.counts.new_zeros(min(self._max_rows, max(4, 2 * num_rows)), vocab_size)
            grown[:num_rows].copy_(self.counts)
            self.counts = grown
            free = {num_rows}
        self._row_of_slot[slot] = min(free)
        return self._row_of_slot[slot]

    def release_row(self, slot: int) -> None:
        """The slot has no use for a row any more, if it had one."""
        self._row_of_slot.pop(slot, None)

    def reset(self, arrays: dict[str, Tensor]) -> None:
        """Sets rows to what is known of their requests; `arrays` as made by counted_arrays."""
        self.counts.index_fill_(0, arrays["counted_rows"], 0)
        self.counts.view(-1).scatter_add_(0, arrays["counted_places"], arrays["counted_values"])

    def add(self, rows: Tensor, token_ids: Tensor) -> None:
        """Counts one sampled token per row, both int64 [n]."""
        ops.count_tokens(self.counts, rows, token_ids)


def counted_arrays(started: Sequence[tuple[StartedRequest, int]], vocab_size: int) -> dict[str, NDArray[np.generic]]:
    """What TokenCounts.reset needs of requests and their rows."""
    places, values = [], []
    for request, row in started:
        prompt = np.unique(np.asarray(request.prompt_token_ids, np.int64))
        output = np.asarray(request.output_token_ids, np.int64)
        places += [row * vocab_size + prompt, row * vocab_size + output]
        values += [np.ones(len(prompt), np.int32), np.full(len(output), 2, np.int32)]
    return {
        "counted_rows": np.array([row for _, row in started], np.int64),
        "counted_places": np.concatenate(places),
        "counted_values": np.concatenate(values),
    }

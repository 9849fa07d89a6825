"""The rows of a step's attention: requests, or every token by itself.

A request's tokens together are what kernels are fastest with, but which of them come together, chunks, how the work is cut and
so how it is rounded, depends on what else runs. A row of one token is attended the same way wherever it is: its result is a
function of its own context alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.step_state import StepTensors
from .step_sizes import StepSize


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """N rows, as in kernels.attention_batch.AttentionBatch."""

    row_slots: Tensor
    """int32 [N]."""
    query_start: Tensor
    """int32 [N + 1]."""
    context_lens: Tensor
    """int32 [N]; 0 for padding."""


def rows_of_requests(step: StepTensors, size: StepSize) -> AttentionRows:
    """The rows of a step that has been prepared."""
    num_rows = size.num_rows
    return AttentionRows(step.row_slots[:num_rows], step.query_start[: num_rows + 1], step.context_lens[:num_rows])


def rows_of_tokens(step: StepTensors, size: StepSize) -> AttentionRows:
    """A row per token of a step that has been prepared, padding included. Nothing here waits for the device."""
    num_tokens, num_rows = size.num_tokens, size.num_rows
    query_start = torch.arange(num_tokens + 1, dtype=torch.int32, device=step.row_slots.device)
    ends = step.query_start[1 : num_rows + 1]
    rows = torch.searchsorted(ends, query_start[:-1], right=True).clamp_max(num_rows - 1)
    is_real = step.kv_slots[0, :num_tokens] >= 0
    context_lens = torch.where(is_real, step.positions[:num_tokens] + 1, 0).int()
    return AttentionRows(step.row_slots.index_select(0, rows), query_start, context_lens)

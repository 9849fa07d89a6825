"""Rows of logits of every kind, and their parameters in slots among others full of nonsense."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernels.comparing import TRITON_DEVICE


def odd_rows(vocab_size: int, dtype: torch.dtype) -> Tensor:
    """[8, vocab_size] in a wider tensor of NaN: random, peaked, flat, tied, few finite, with NaN, with +inf, none finite."""
    rows = torch.randn(8, vocab_size) * 3
    rows[1, vocab_size // 2 : vocab_size // 2 + 3] += 15
    rows[2] = -1.5
    rows[3] = rows[3].round()
    rows[4, torch.rand(vocab_size) < 0.99] = -torch.inf
    rows[4, vocab_size - 1] = 0.25
    rows[5, vocab_size // 3] = torch.nan
    rows[6, vocab_size // 3] = torch.inf
    rows[7] = -torch.inf
    wide = torch.full((8, vocab_size + 24), torch.nan, dtype=dtype, device=TRITON_DEVICE)
    wide[:, 8 : 8 + vocab_size] = rows.to(wide)
    return wide[:, 8 : 8 + vocab_size]


IS_VALID = [True] * 5 + [False] * 3
"""Of odd_rows."""


def in_slots(row_slots: Tensor, values: Tensor) -> Tensor:
    """[S] with values[r] in slot row_slots[r] and NaN or a huge number in the others."""
    others = torch.nan if values.is_floating_point() else torch.iinfo(values.dtype).max
    slots = torch.full((2 * len(values) + 3,), others, dtype=values.dtype, device=TRITON_DEVICE)
    slots[row_slots.long()] = values.to(TRITON_DEVICE)
    return slots


def random_slots(num_rows: int) -> Tensor:
    """int32 [num_rows], for in_slots."""
    return torch.randperm(2 * num_rows + 3)[:num_rows].int().to(TRITON_DEVICE)

"""Changes to single logits or whole rows before sampling: penalties, bias, forbidden tokens; and the counts penalties need."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

TILE_SIZE = 4096
NUM_TILE_WARPS = 8
BLOCK_SIZE = 128


def apply_penalties(
    logits: Tensor,
    rows: Tensor,
    token_counts: Tensor,
    count_rows: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """See ops.apply_penalties."""
    vocab_size = logits.shape[1]
    assert logits.dtype == torch.float32
    assert logits.stride(1) == token_counts.stride(1) == 1
    if len(rows) == 0:
        return
    _penalize_kernel[(triton.cdiv(vocab_size, TILE_SIZE), len(rows))](
        logits,
        rows,
        token_counts,
        count_rows,
        repetition,
        frequency,
        presence,
        logits.stride(0),
        token_counts.stride(0),
        VOCAB_SIZE=vocab_size,
        TILE=TILE_SIZE,
        num_warps=NUM_TILE_WARPS,
    )


def add_to_logits(logits: Tensor, rows: Tensor, token_ids: Tensor, values: Tensor) -> None:
    """See ops.add_to_logits."""
    assert logits.stride(1) == 1
    _add(logits, rows, token_ids, values, None)


def count_tokens(token_counts: Tensor, count_rows: Tensor, token_ids: Tensor) -> None:
    """See ops.count_tokens."""
    assert token_counts.stride(1) == 1
    _add(token_counts, count_rows, token_ids, None, 2)


def _add(table: Tensor, rows: Tensor, columns: Tensor, values: Tensor | None, constant: int | None) -> None:
    """Adds values[i], or else the constant, to table[rows[i], columns[i]]."""
    num_places = len(rows)
    if num_places:
        grid = (triton.cdiv(num_places, BLOCK_SIZE),)
        _add_kernel[grid](
            table, rows, columns, values, num_places, table.stride(0), CONSTANT=constant, BLOCK=BLOCK_SIZE, num_warps=4
        )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _penalize_kernel(  # type: ignore[no-untyped-def]
    logits,
    rows,
    token_counts,
    count_rows,
    repetition,
    frequency,
    presence,
    row_stride,
    counts_row_stride,
    VOCAB_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    i = tl.program_id(1)
    i_token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = i_token < VOCAB_SIZE
    b_counts = tl.load(token_counts + tl.load(count_rows + i).to(tl.int64) * counts_row_stride + i_token, mask=inside, other=0)
    b_is_seen = b_counts != 0
    places = logits + tl.load(rows + i).to(tl.int64) * row_stride + i_token
    # Tokens that never came stay as they are: neither read nor written.
    b_logits = tl.load(places, mask=b_is_seen, other=0.0)
    factor = tl.load(repetition + i)
    b_penalized = tl.where(b_logits > 0, b_logits / factor, b_logits * factor)
    b_num_output = b_counts >> 1
    b_penalized -= tl.load(frequency + i) * b_num_output.to(tl.float32)
    b_penalized -= tl.where(b_num_output > 0, tl.load(presence + i), 0.0)
    tl.store(places, b_penalized, mask=b_is_seen)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _add_kernel(  # type: ignore[no-untyped-def]
    table,
    rows,
    columns,
    values,  # None: CONSTANT is added
    num_places,
    row_stride,
    CONSTANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < num_places
    b_row = tl.load(rows + i, mask=inside, other=0).to(tl.int64)
    places = table + b_row * row_stride + tl.load(columns + i, mask=inside, other=0)
    b_old = tl.load(places, mask=inside, other=0)
    if values is None:
        tl.store(places, b_old + CONSTANT, mask=inside)
    else:
        tl.store(places, b_old + tl.load(values + i, mask=inside, other=0), mask=inside)

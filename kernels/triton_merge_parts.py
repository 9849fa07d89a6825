"""Puts together the partial results of query tokens whose keys were attended in parts: a program per row and query head.

Rows of one part leave at once: their result is where it belongs. The order of the parts is always the same.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .attention_batch import AttentionBatch, DecodeWork
from .triton_attend_keys import padded_dims
from .triton_launch import has_pdl

PARTS_AT_A_TIME = 16
"""A constant, since the order in which numbers are added hangs on it."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def merge_parts_kernel(  # type: ignore[no-untyped-def]
    partial_out,
    partial_weights,
    out,
    query_start,
    partial_starts,
    row_parts,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Partial results lie by query tile, then by part, then by token."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    i_row, i_head = tl.program_id(0) // NUM_HEADS, tl.program_id(0) % NUM_HEADS
    i_part, i_dim = tl.arange(0, PARTS), tl.arange(0, DIMS)
    # What the plan wrote is complete before the layers begin.
    num_parts = tl.load(row_parts + i_row)
    first_partial = tl.load(partial_starts + i_row)
    first_token = tl.load(query_start + i_row)
    num_tokens = tl.where(num_parts > 1, tl.load(query_start + i_row + 1) - first_token, 0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for token in range(0, num_tokens):
        tile_token = token // TILE_TOKENS * TILE_TOKENS
        tile_tokens = tl.minimum(num_tokens - tile_token, TILE_TOKENS)
        first_place = first_partial + tile_token * num_parts + token - tile_token
        top, weight_sum = float("-inf"), 0.0
        b_out = tl.zeros((DIMS,), tl.float32)
        for first_part in range(0, num_parts, PARTS):
            b_parts = first_part + i_part
            b_places = (first_place + b_parts * tile_tokens) * NUM_HEADS + i_head
            readable = b_parts < num_parts
            b_logs = tl.load(partial_weights + b_places, mask=readable, other=float("-inf"))
            b_values = tl.load(
                partial_out + b_places[:, None] * HEAD_DIM + i_dim[None, :],
                mask=readable[:, None] & (i_dim < HEAD_DIM)[None, :],
                other=0.0,
            )
            new_top = tl.maximum(top, tl.max(b_logs, 0))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            b_weights = tl.exp2(b_logs - base)
            shrink = tl.exp2(top - base)
            weight_sum = weight_sum * shrink + tl.sum(b_weights, 0)
            b_out = b_out * shrink + tl.sum(b_weights[:, None] * b_values, 0)
            top = new_top
        places = ((first_token + token).to(tl.int64) * NUM_HEADS + i_head) * HEAD_DIM + i_dim
        tl.store(out + places, (b_out / weight_sum).to(out.dtype.element_ty), mask=i_dim < HEAD_DIM)


def merge_parts(
    partial_out: Tensor, partial_weights: Tensor, out: Tensor, batch: AttentionBatch, work: DecodeWork, tile_tokens: int
) -> None:
    """Writes the tokens of out [T, Hq, D] whose rows have several parts.

    partial_out float32 [max_partials, Hq, D] are means of values, partial_weights float32 [max_partials, Hq] the base-2
    logarithms of their sums of weights.
    """
    num_heads, head_dim = out.shape[1:]
    pdl = has_pdl(out)
    merge_parts_kernel[(batch.context_lens.shape[0] * num_heads,)](
        partial_out,
        partial_weights,
        out,
        batch.query_start,
        work.partial_starts,
        work.row_parts,
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        DIMS=padded_dims(head_dim),
        TILE_TOKENS=tile_tokens,
        PARTS=PARTS_AT_A_TIME,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=2,
    )

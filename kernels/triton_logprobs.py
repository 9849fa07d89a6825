"""Log-softmax at a chosen token and at the likeliest ones, without a tensor of all log-probabilities.

One pass over the logits finds each tile's maximum, sum of weights, and number of likelier tokens; a small one joins the tiles.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

TILE_SIZE = 4096
NUM_TILE_WARPS = 8


def top_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """See ops.top_logprobs."""
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1
    device, width = logits.device, 1 + num_top
    ids = torch.empty(num_rows, width, dtype=torch.int32, device=device)
    logprobs = torch.empty(num_rows, width, dtype=torch.float32, device=device)
    ranks = torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows == 0:
        return ids, logprobs, ranks
    num_tiles = triton.cdiv(vocab_size, TILE_SIZE)
    sums = torch.empty(num_rows, num_tiles, 2, dtype=torch.float32, device=device)
    counts = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=device)
    _sum_kernel[(num_tiles, num_rows)](
        logits,
        token_ids,
        sums,
        counts,
        logits.stride(0),
        VOCAB_SIZE=vocab_size,
        NUM_TILES=num_tiles,
        TILE=TILE_SIZE,
        num_warps=NUM_TILE_WARPS,
    )
    top_logits, top_ids = logits.topk(num_top, dim=1) if num_top else (None, None)
    _report_kernel[(num_rows,)](
        logits,
        token_ids,
        top_logits,
        top_ids,
        sums,
        counts,
        ids,
        logprobs,
        ranks,
        logits.stride(0),
        NUM_TILES=num_tiles,
        TILE_BLOCK=triton.next_power_of_2(num_tiles),
        NUM_TOP=num_top,
        TOP_BLOCK=triton.next_power_of_2(max(num_top, 1)),
        num_warps=1,
    )
    return ids, logprobs, ranks


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sum_kernel(  # type: ignore[no-untyped-def]
    logits,
    token_ids,
    sums,
    counts,
    row_stride,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """(maximum, sum of exp(logit - maximum)) of a tile, and how many of its logits are above the chosen token's."""
    i_tile = tl.program_id(0)
    i_row = tl.program_id(1).to(tl.int64)
    i_token = i_tile * TILE + tl.arange(0, TILE)
    row = logits + i_row * row_stride
    b_logits = tl.load(row + i_token, mask=i_token < VOCAB_SIZE, other=-float("inf")).to(tl.float32)
    chosen = tl.load(row + tl.load(token_ids + i_row)).to(tl.float32)
    highest = tl.max(b_logits, 0)
    # A tile of nothing but -inf has no mass; -inf minus -inf would be NaN.
    base = tl.where(highest > -float("inf"), highest, 0.0)
    place = i_row * NUM_TILES + i_tile
    tl.store(sums + place * 2, base)
    tl.store(sums + place * 2 + 1, tl.sum(tl.exp(b_logits - base), 0))
    tl.store(counts + place, tl.sum((b_logits > chosen).to(tl.int32), 0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _report_kernel(  # type: ignore[no-untyped-def]
    logits,
    token_ids,
    top_logits,  # None where NUM_TOP is 0
    top_ids,
    sums,
    counts,
    ids,
    logprobs,
    ranks,
    row_stride,
    NUM_TILES: tl.constexpr,
    TILE_BLOCK: tl.constexpr,
    NUM_TOP: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
):
    """One row's results from its tiles' sums."""
    i_row = tl.program_id(0).to(tl.int64)
    i_tile = tl.arange(0, TILE_BLOCK)
    inside = i_tile < NUM_TILES
    places = i_row * NUM_TILES + i_tile
    b_base = tl.load(sums + places * 2, mask=inside, other=-float("inf"))
    b_sum = tl.load(sums + places * 2 + 1, mask=inside, other=0.0)
    highest = tl.max(tl.where(b_sum > 0.0, b_base, -float("inf")), 0)
    b_scale = tl.where(b_sum > 0.0, tl.exp(b_base - highest), 0.0)
    log_sum = tl.log(tl.sum(b_sum * b_scale, 0))
    token_id = tl.load(token_ids + i_row)
    chosen = tl.load(logits + i_row * row_stride + token_id).to(tl.float32)
    start = i_row * (1 + NUM_TOP)
    tl.store(ids + start, token_id.to(tl.int32))
    tl.store(logprobs + start, chosen - highest - log_sum)
    tl.store(ranks + i_row, tl.sum(tl.load(counts + places, mask=inside, other=0), 0) + 1)
    if NUM_TOP > 0:
        i_top = tl.arange(0, TOP_BLOCK)
        b_top = tl.load(top_logits + i_row * NUM_TOP + i_top, mask=i_top < NUM_TOP, other=0.0).to(tl.float32)
        b_ids = tl.load(top_ids + i_row * NUM_TOP + i_top, mask=i_top < NUM_TOP, other=0)
        tl.store(ids + start + 1 + i_top, b_ids.to(tl.int32), mask=i_top < NUM_TOP)
        tl.store(logprobs + start + 1 + i_top, b_top - highest - log_sum, mask=i_top < NUM_TOP)

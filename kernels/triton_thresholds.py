"""Where min_p, top_k and top_p cut a row of logits, by a search instead of a sort; rows without filters end at once.

Five launches: the range of each row; counts and masses above NUM_PIVOTS values of that range; which intervals between such
values hold the cuts; a list of the logits in those intervals; a bisection among them.
Sums run in an order that the row's length fixes, so a row's threshold depends on nothing but the row.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .triton_filters import filters_of_row, is_finite, least_logit, range_of_row, weights_of
from .triton_launch import has_pdl
from .triton_threshold_search import find_intervals_kernel, search_kernel

TILE_SIZE = 8192
NUM_PIVOTS = 16
LIST_SIZE = 8192
"""Logits of a row that are listed at most. Where the intervals hold more, each step of the search reads the whole row."""
SEARCH_BLOCK_SIZE = 2048
NUM_TILE_WARPS = 8
NUM_LIST_WARPS = 16
NUM_INTERVAL_WARPS = 4
NUM_SEARCH_WARPS = 8
KEY_SHIFTS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}
"""Low bits that are 0 in every value of the dtype once it is float32."""


def logit_thresholds_by_slot(
    logits: Tensor, row_slots: Tensor, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """See ops.logit_thresholds_by_slot."""
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1

    def per_row(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(num_rows, *shape, dtype=dtype, device=logits.device)

    thresholds = per_row()
    if num_rows == 0:
        return thresholds
    num_tiles = triton.cdiv(vocab_size, TILE_SIZE)
    ranges, pivots = per_row(num_tiles, 2), per_row(NUM_PIVOTS)
    counts, masses = per_row(num_tiles, NUM_PIVOTS, dtype=torch.int32), per_row(num_tiles, NUM_PIVOTS)
    intervals, counts_above, masses_above = per_row(2, 2), per_row(dtype=torch.int32), per_row(3)
    list_starts, listed = per_row(num_tiles + 1, dtype=torch.int32), per_row(LIST_SIZE, dtype=logits.dtype)
    parameters, row_stride = (row_slots, temperatures, top_k, top_p, min_p), logits.stride(0)
    found = (intervals, counts_above, masses_above, list_starts)
    sizes = {"VOCAB_SIZE": vocab_size, "NUM_TILES": num_tiles}
    tiling = {**sizes, "TILE_BLOCK": triton.next_power_of_2(num_tiles)}
    tile, pivoting = {"TILE": TILE_SIZE}, {**tiling, "PIVOTS": NUM_PIVOTS}
    launch = {"PDL": has_pdl(logits), "launch_pdl": has_pdl(logits)}
    by_tile, by_row = (num_tiles, num_rows), (num_rows,)
    _range_kernel[by_tile](logits, *parameters, ranges, row_stride, **sizes, **tile, **launch, num_warps=NUM_TILE_WARPS)
    _count_kernel[by_tile](
        logits, *parameters, ranges, pivots, counts, masses, row_stride, **pivoting, **tile, **launch, num_warps=NUM_TILE_WARPS
    )
    find_intervals_kernel[by_row](
        *parameters, ranges, pivots, counts, masses, *found, thresholds, **pivoting, **launch, num_warps=NUM_INTERVAL_WARPS
    )
    _list_kernel[by_tile](
        logits, intervals, list_starts, listed, row_stride, **sizes, **tile, **launch, LIST=LIST_SIZE, num_warps=NUM_LIST_WARPS
    )
    search = {"LIST": LIST_SIZE, "BLOCK": SEARCH_BLOCK_SIZE, "SHIFT": KEY_SHIFTS[logits.dtype], "num_warps": NUM_SEARCH_WARPS}
    search_kernel[by_row](logits, listed, *parameters, ranges, *found, thresholds, row_stride, **tiling, **search, **launch)
    return thresholds


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _range_kernel(  # type: ignore[no-untyped-def]
    logits,
    row_slots,
    temperatures,
    top_k,
    top_p,
    min_p,
    ranges,
    row_stride,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Highest and lowest finite logit of a tile."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_tile = tl.program_id(0)
    i_row = tl.program_id(1).to(tl.int64)
    _, k, p, least_share = filters_of_row(i_row, row_slots, temperatures, top_k, top_p, min_p, VOCAB_SIZE)
    if (k == 0) & (p >= 1.0) & (least_share <= 0.0):
        return
    i_token = i_tile * TILE + tl.arange(0, TILE)
    b_logits = tl.load(logits + i_row * row_stride + i_token, mask=i_token < VOCAB_SIZE, other=-float("inf")).to(tl.float32)
    # NaN would lose every comparison; as infinity it wins, and the row is known to be void.
    b_highest = tl.where(b_logits != b_logits, float("inf"), b_logits)
    place = ranges + (i_row * NUM_TILES + i_tile) * 2
    tl.store(place, tl.max(b_highest, 0))
    tl.store(place + 1, tl.min(tl.where(b_logits > -float("inf"), b_logits, float("inf")), 0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _count_kernel(  # type: ignore[no-untyped-def]
    logits,
    row_slots,
    temperatures,
    top_k,
    top_p,
    min_p,
    ranges,
    pivots,
    counts,
    masses,
    row_stride,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of one tile, how many logits are at least each pivot, and their weights' sum.

    All but the last pivot lie between the highest and the lowest logit, closer together near the highest, where most cuts
    are; the last but one is the lowest, the last is where min_p cuts.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_tile = tl.program_id(0)
    i_row = tl.program_id(1).to(tl.int64)
    temperature, k, p, least_share = filters_of_row(i_row, row_slots, temperatures, top_k, top_p, min_p, VOCAB_SIZE)
    if (k == 0) & (p >= 1.0):
        return
    highest, lowest = range_of_row(i_row, ranges, True, NUM_TILES, TILE_BLOCK)
    if not is_finite(highest):
        return
    i_token = i_tile * TILE + tl.arange(0, TILE)
    b_logits = tl.load(logits + i_row * row_stride + i_token, mask=i_token < VOCAB_SIZE, other=-float("inf")).to(tl.float32)
    b_weights = weights_of(b_logits, highest, temperature)
    tile_highest = tl.max(b_logits, 0)
    places = (i_row * NUM_TILES + i_tile) * PIVOTS
    for i in tl.static_range(PIVOTS):
        if i < PIVOTS - 2:
            pivot = highest - (highest - lowest) * ((i + 1) * (i + 1) / ((PIVOTS - 1) * (PIVOTS - 1)))
        elif i == PIVOTS - 2:
            pivot = lowest
        else:
            pivot = least_logit(highest, temperature, least_share)
        count, mass = 0.0, 0.0
        if tile_highest >= pivot:
            # As floats, which hold a tile's count exactly: a comparison, an addition and a multiply-add for each logit.
            b_above = (b_logits >= pivot).to(tl.float32)
            count, mass = tl.sum(b_above, 0), tl.sum(b_above * b_weights, 0)
        tl.store(counts + places + i, count)
        tl.store(masses + places + i, mass)
        if i_tile == 0:
            tl.store(pivots + i_row * PIVOTS + i, pivot)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _list_kernel(  # type: ignore[no-untyped-def]
    logits,
    intervals,
    list_starts,
    listed,
    row_stride,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
    LIST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Copies a tile's logits of the two intervals to their places in the row's list, in the order of their ids."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_tile = tl.program_id(0)
    i_row = tl.program_id(1).to(tl.int64)
    starts = list_starts + i_row * (NUM_TILES + 1)
    start = tl.load(starts + i_tile)
    if (start == tl.load(starts + i_tile + 1)) | (tl.load(starts + NUM_TILES) > LIST):
        return
    i_token = i_tile * TILE + tl.arange(0, TILE)
    b_own = tl.load(logits + i_row * row_stride + i_token, mask=i_token < VOCAB_SIZE, other=-float("inf"))
    b_logits = b_own.to(tl.float32)
    places = intervals + i_row * 4
    b_is_listed = (b_logits >= tl.load(places)) & (b_logits < tl.load(places + 1))
    b_is_listed |= (b_logits >= tl.load(places + 2)) & (b_logits < tl.load(places + 3))
    b_place = start + tl.cumsum(b_is_listed.to(tl.int32), 0) - 1
    tl.store(listed + i_row * LIST + b_place, b_own, mask=b_is_listed)

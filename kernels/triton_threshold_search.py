"""The searches for a row's filter threshold: between which two pivots it lies, then which of the logits there it is."""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from .triton_filters import filters_of_row, is_finite, key_of, least_logit, range_of_row, value_of, weights_of


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def find_intervals_kernel(  # type: ignore[no-untyped-def]
    row_slots,
    temperatures,
    top_k,
    top_p,
    min_p,
    ranges,
    pivots,
    counts,
    masses,
    intervals,
    counts_above,
    masses_above,
    list_starts,
    thresholds,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE_BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of one row: top_k's and top_p's interval, what lies above each, and where each tile's logits of them are listed.

    How much mass top_p has a share of depends on where top_k cuts, so its interval covers what any cut in top_k's would give.
    Where no search is needed the threshold is final: min_p's, or -inf.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_row = tl.program_id(0).to(tl.int64)
    i_tile = tl.arange(0, TILE_BLOCK)
    starts = list_starts + i_row * (NUM_TILES + 1)
    temperature, k, p, least_share = filters_of_row(i_row, row_slots, temperatures, top_k, top_p, min_p, VOCAB_SIZE)
    has_filters = (k > 0) | (p < 1.0) | (least_share > 0.0)
    highest, _ = range_of_row(i_row, ranges, has_filters, NUM_TILES, TILE_BLOCK)
    has_filters &= is_finite(highest)
    lowest_kept = tl.where(has_filters, least_logit(highest, temperature, least_share), -float("inf"))
    tl.store(thresholds + i_row, lowest_kept)
    tl.store(starts, 0)
    if (not has_filters) | ((k == 0) & (p >= 1.0)):
        tl.store(starts + 1 + i_tile, tl.zeros_like(i_tile), mask=i_tile < NUM_TILES)
        return
    i_pivot = tl.arange(0, PIVOTS)
    places = (i_row * NUM_TILES + i_tile[:, None]) * PIVOTS + i_pivot[None, :]
    inside = (i_tile[:, None] < NUM_TILES) & (i_pivot[None, :] < PIVOTS)
    b_counts = tl.load(counts + places, mask=inside, other=0)
    b_count = tl.sum(b_counts, 0)
    b_mass = tl.sum(tl.load(masses + places, mask=inside, other=0.0), 0)
    b_pivot = tl.load(pivots + i_row * PIVOTS + i_pivot)
    LAST: tl.constexpr = PIVOTS - 2
    b_is_step = i_pivot <= LAST
    whole_mass = _pick(b_mass, i_pivot, PIVOTS - 1, 0.0)

    i_k = tl.min(tl.where(b_is_step & (b_count >= k), i_pivot, PIVOTS), 0)
    has_k = (k > 0) & (i_k < PIVOTS)
    i_k = tl.where(has_k, i_k, PIVOTS)
    mass_above_k = _pick(b_mass, i_pivot, i_k - 1, 0.0)
    most_mass = tl.where(has_k, tl.minimum(whole_mass, _pick(b_mass, i_pivot, i_k, 0.0)), whole_mass)
    least_mass = tl.where(has_k, tl.minimum(whole_mass, mass_above_k), whole_mass)
    i_p_first = tl.minimum(tl.min(tl.where(b_is_step & (b_mass >= p * least_mass), i_pivot, PIVOTS), 0), LAST)
    i_p_last = tl.minimum(tl.min(tl.where(b_is_step & (b_mass >= p * most_mass), i_pivot, PIVOTS), 0), LAST)
    i_p_first = tl.where(p < 1.0, i_p_first, PIVOTS)

    infinity = float("inf")
    tl.store(intervals + i_row * 4, tl.where(has_k, _pick(b_pivot, i_pivot, i_k, infinity), infinity))
    tl.store(intervals + i_row * 4 + 1, _pick(b_pivot, i_pivot, i_k - 1, infinity))
    tl.store(intervals + i_row * 4 + 2, tl.where(p < 1.0, _pick(b_pivot, i_pivot, i_p_last, infinity), infinity))
    tl.store(intervals + i_row * 4 + 3, _pick(b_pivot, i_pivot, i_p_first - 1, infinity))
    tl.store(counts_above + i_row, _pick(b_count, i_pivot, i_k - 1, 0))
    tl.store(masses_above + i_row * 3, mass_above_k)
    tl.store(masses_above + i_row * 3 + 1, _pick(b_mass, i_pivot, i_p_first - 1, 0.0))
    tl.store(masses_above + i_row * 3 + 2, whole_mass)

    b_is_listed = (i_pivot == i_k) | ((i_pivot >= i_p_first) & (i_pivot <= i_p_last))
    b_counts_above = tl.load(counts + places - 1, mask=inside & (i_pivot[None, :] > 0), other=0)
    b_num_listed = tl.sum(tl.where(b_is_listed[None, :], b_counts - b_counts_above, 0), 1)
    tl.store(starts + 1 + i_tile, tl.cumsum(b_num_listed, 0), mask=i_tile < NUM_TILES)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def search_kernel(  # type: ignore[no-untyped-def]
    logits,
    listed,
    row_slots,
    temperatures,
    top_k,
    top_p,
    min_p,
    ranges,
    intervals,
    counts_above,
    masses_above,
    list_starts,
    thresholds,
    row_stride,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE_BLOCK: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
    SHIFT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Raises the threshold of one row to where top_k cuts, then to where top_p does."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_row = tl.program_id(0).to(tl.int64)
    num_listed = tl.load(list_starts + i_row * (NUM_TILES + 1) + NUM_TILES)
    if num_listed == 0:
        return
    temperature, k, p, _ = filters_of_row(i_row, row_slots, temperatures, top_k, top_p, min_p, VOCAB_SIZE)
    highest, _ = range_of_row(i_row, ranges, True, NUM_TILES, TILE_BLOCK)
    source, size = logits + i_row * row_stride, VOCAB_SIZE
    if num_listed <= LIST:
        source, size = listed + i_row * LIST, num_listed
    threshold = tl.load(thresholds + i_row)
    mass = tl.load(masses_above + i_row * 3 + 2)
    least = tl.load(intervals + i_row * 4)
    end = tl.load(intervals + i_row * 4 + 1)
    if least < float("inf"):
        count_above = tl.load(counts_above + i_row)
        # From `low` on there are enough logits, from `high` on too few.
        low, high = _key_range(least, end, highest, SHIFT)
        while high - low > 1:
            middle = low + (high - low) // 2
            count, own_mass = _above(source, size, least, end, middle.to(tl.int32), highest, temperature, BLOCK, SHIFT)
            is_enough = count_above + count >= k
            low, high = tl.where(is_enough, middle, low), tl.where(is_enough, high, middle)
        count, own_mass = _above(source, size, least, end, low.to(tl.int32), highest, temperature, BLOCK, SHIFT)
        mass = tl.minimum(mass, tl.load(masses_above + i_row * 3) + own_mass)
        threshold = tl.maximum(threshold, value_of(low.to(tl.int32), SHIFT))
    if p < 1.0:
        least = tl.load(intervals + i_row * 4 + 2)
        end = tl.load(intervals + i_row * 4 + 3)
        mass_above = tl.load(masses_above + i_row * 3 + 1)
        low, high = _key_range(least, end, highest, SHIFT)
        while high - low > 1:
            middle = low + (high - low) // 2
            count, own_mass = _above(source, size, least, end, middle.to(tl.int32), highest, temperature, BLOCK, SHIFT)
            is_enough = mass_above + own_mass >= p * mass
            low, high = tl.where(is_enough, middle, low), tl.where(is_enough, high, middle)
        threshold = tl.maximum(threshold, value_of(low.to(tl.int32), SHIFT))
    tl.store(thresholds + i_row, tl.minimum(threshold, highest))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _pick(b_values, i_value, i_picked, otherwise):  # type: ignore[no-untyped-def]
    """b_values[i_picked], or `otherwise` below 0; any finite value or 0 above the end."""
    return tl.where(i_picked < 0, otherwise, tl.sum(tl.where(i_value == i_picked, b_values, tl.zeros_like(b_values)), 0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _key_range(least, end, highest, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """int64 keys (low, high): those of the row's logits with least <= logit < end are at least low and less than high."""
    return key_of(least, SHIFT).to(tl.int64), key_of(tl.minimum(end, highest), SHIFT).to(tl.int64) + 1


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _above(  # type: ignore[no-untyped-def]
    source, size, least, end, key, highest, temperature, BLOCK: tl.constexpr, SHIFT: tl.constexpr
):
    """Number and summed weights of the logits with least <= logit < end whose key is at least `key`, an int32."""
    b_count = tl.zeros((BLOCK,), tl.int32)
    b_mass = tl.zeros((BLOCK,), tl.float32)
    start = 0
    while start < size:
        i_own = start + tl.arange(0, BLOCK)
        b_logits = tl.load(source + i_own, mask=i_own < size, other=-float("inf")).to(tl.float32)
        b_above = (b_logits >= least) & (b_logits < end) & (key_of(b_logits, SHIFT) >= key)
        b_count += b_above.to(tl.int32)
        b_mass += tl.where(b_above, weights_of(b_logits, highest, temperature), 0.0)
        start += BLOCK
    return tl.sum(b_count, 0), tl.sum(b_mass, 0)

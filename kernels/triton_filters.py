"""What the kernels of the filter thresholds share: a row's parameters, its range, and its float values as ordered integers."""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def filters_of_row(i_row, row_slots, temperatures, top_k, top_p, min_p, VOCAB_SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(temperature, k, p, min_p) of a row: 0, 0, 1, 0 where they filter nothing, so also of a greedy row."""
    i_slot = tl.load(row_slots + i_row).to(tl.int64)
    temperature = tl.load(temperatures + i_slot)
    is_random = temperature > 0
    k = tl.load(top_k + i_slot).to(tl.int32)
    k = tl.where(is_random & (k > 0) & (k < VOCAB_SIZE), k, 0)
    p = tl.where(is_random, tl.load(top_p + i_slot), 1.0)
    return temperature, k, p, tl.where(is_random, tl.load(min_p + i_slot), 0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def range_of_row(i_row, ranges, is_written, NUM_TILES: tl.constexpr, TILE_BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """(highest logit, lowest finite logit); the highest is infinite where the row is void: no finite logit, NaN or +inf.

    Infinite too where `is_written` says that nothing has written the row's part of `ranges`.
    """
    i_tile = tl.arange(0, TILE_BLOCK)
    inside = (i_tile < NUM_TILES) & is_written
    places = ranges + (i_row * NUM_TILES + i_tile) * 2
    b_highest = tl.load(places, mask=inside, other=-float("inf"))
    b_lowest = tl.load(places + 1, mask=inside, other=float("inf"))
    return tl.max(b_highest, 0), tl.min(b_lowest, 0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def is_finite(x):  # type: ignore[no-untyped-def]
    return (x > -float("inf")) & (x < float("inf"))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def weights_of(b_logits, highest, temperature):  # type: ignore[no-untyped-def]
    """exp((logit - highest) / temperature), 0 of -inf."""
    return tl.exp2((b_logits - highest) * (1.4426950408889634 / temperature))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def key_of(x, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """An int32 that orders float32 values as they are ordered, without its SHIFT low bits."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def value_of(key, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The float32 whose key_of is `key` and whose SHIFT low bits are 0."""
    is_negative = key < 0
    bits = key << SHIFT
    bits = tl.where(is_negative, (bits | ((1 << SHIFT) - 1)) ^ 0x7FFFFFFF, bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def least_logit(highest, temperature, min_p):  # type: ignore[no-untyped-def]
    """The logit of a token min_p times as likely as the likeliest; -inf where min_p is off."""
    return tl.where(min_p > 0.0, highest + temperature * tl.log(tl.where(min_p > 0.0, min_p, 1.0)), -float("inf"))

"""Paged attention of rows with few query tokens: every key and value is read once, by items that triton_decode_plan cut.

A grid of fixed size walks the items, each program in one loop over all tiles of all its items: loads of the next item are on
their way while one ends. Items of rows that are split leave float32 partial results, which a launch of its own puts together in
a fixed order (split-KV attention as in Flash-Decoding, Dao et al. 2023); so do shared chunks, in a launch that goes first.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .attention_batch import AttentionBatch
from .triton_attend_keys import (
    Tuning,
    attend_tile,
    grid_size,
    key_offsets,
    load_blocks,
    max_registers,
    padded_dims,
    tile_keys,
    weighted_mean,
)
from .triton_decode_plan import ITEM_FIELDS, plan_attention, query_rows
from .triton_launch import has_pdl
from .triton_merge_parts import merge_parts
from .triton_shared_attention import SHARED_TUNING, attend_shared

_TUNINGS = {
    64: Tuning(tile_bytes=16 * 1024, num_warps=4, num_stages=3, programs_per_multiprocessor=3),
    128: Tuning(tile_bytes=16 * 1024, num_warps=4, num_stages=3, programs_per_multiprocessor=3),
    256: Tuning(tile_bytes=16 * 1024, num_warps=4, num_stages=3, programs_per_multiprocessor=2),
}
"""By padded head size, as measured on an H200."""
_OTHER_TUNINGS = {
    64: Tuning(tile_bytes=8 * 1024, num_warps=4, num_stages=4, programs_per_multiprocessor=4),
    128: Tuning(tile_bytes=16 * 1024, num_warps=4, num_stages=3, programs_per_multiprocessor=2),
    256: _TUNINGS[256],
}
"""For other GPUs than Hopper, whose compilers need more registers."""


def decode_tuning(head_dim: int, device: torch.device) -> Tuning:
    """How items of single rows are launched."""
    is_hopper = device.type == "cpu" or torch.cuda.get_device_capability(device)[0] == 9
    return (_TUNINGS if is_hopper else _OTHER_TUNINGS)[max(64, padded_dims(head_dim))]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _count_tiles(  # type: ignore[no-untyped-def]
    items, num_work, NUM_KV_HEADS: tl.constexpr, KEYS: tl.constexpr, AHEAD: tl.constexpr, ITEMS: tl.constexpr
):
    """(tiles of all items of this program, how many of its AHEAD first items have keys of new tokens)."""
    num_tiles, num_new = 0, 0
    for first_item in range(0, tl.cdiv(num_work - tl.program_id(0), tl.num_programs(0)), ITEMS):
        b_which = first_item + tl.arange(0, ITEMS)
        b_work = tl.program_id(0) + b_which * tl.num_programs(0)
        fields = items + b_work // NUM_KV_HEADS * ITEM_FIELDS
        b_first_keys = tl.load(fields + 1, mask=b_work < num_work, other=0)
        b_end_keys = tl.load(fields + 2, mask=b_work < num_work, other=0)
        num_tiles += tl.sum((b_end_keys - b_first_keys + KEYS - 1) // KEYS)
        num_new += tl.sum(tl.load(fields + 7, mask=(b_work < num_work) & (b_which < AHEAD), other=0))
    return num_tiles, num_new


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _load_item(items, i_work, num_work, NUM_KV_HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The fields of an item; zeros, which stand for no keys at all, where there is none."""
    fields = items + i_work // NUM_KV_HEADS * ITEM_FIELDS
    is_real = i_work < num_work
    return (
        tl.load(fields, mask=is_real, other=0),
        tl.load(fields + 1, mask=is_real, other=0),
        tl.load(fields + 2, mask=is_real, other=0),
        tl.load(fields + 3, mask=is_real, other=0),
        tl.load(fields + 4, mask=is_real, other=0),
        tl.load(fields + 5, mask=is_real, other=0),
        tl.load(fields + 6, mask=is_real, other=0),
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _choose(condition, item, other):  # type: ignore[no-untyped-def]
    """One of two items."""
    return (
        tl.where(condition, item[0], other[0]),
        tl.where(condition, item[1], other[1]),
        tl.where(condition, item[2], other[2]),
        tl.where(condition, item[3], other[3]),
        tl.where(condition, item[4], other[4]),
        tl.where(condition, item[5], other[5]),
        tl.where(condition, item[6], other[6]),
    )


@triton.jit(do_not_specialize=["table_stride"])  # type: ignore[untyped-decorator, unused-ignore]
def decode_attention_kernel(  # type: ignore[no-untyped-def]
    q,
    k_cache,
    v_cache,
    out,
    partial_out,
    partial_weights,
    block_table,
    items,
    num_items,
    scale,
    q_stride,
    table_stride,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Items of single rows: program p takes items p, p + programs, ... Heads vary fastest, they lie side by side in a block."""
    i_row, i_dim, i_key = tl.arange(0, QUERY_ROWS), tl.arange(0, DIMS), tl.arange(0, KEYS)
    num_heads: tl.constexpr = NUM_KV_HEADS * GROUP
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    num_programs = tl.num_programs(0)
    i_work = tl.program_id(0)
    num_work = tl.load(num_items) * NUM_KV_HEADS
    # There are no more programs than places for items: the first one is read before it is known whether it is real.
    item = _choose(i_work < num_work, _load_item(items, i_work, i_work + 1, NUM_KV_HEADS), (0, 0, 0, 0, 0, 0, 0))
    next_item = _load_item(items, i_work + num_programs, num_work, NUM_KV_HEADS)
    num_tiles, num_new = _count_tiles(items, num_work, NUM_KV_HEADS, KEYS, AHEAD, 128)
    key = item[1]
    b_blocks = load_blocks(block_table + item[0].to(tl.int64) * table_stride, key, item[2], BLOCK_SIZE, KEYS)
    if PDL:  # noqa: SIM102  a constant, unlike the other condition
        # The first tiles are loaded before anything waits, unless what they hold is being written by the kernels before.
        if num_new > 0:
            tl.extra.cuda.gdc_wait()
    b_q = tl.zeros((QUERY_ROWS, DIMS), q.dtype.element_ty)
    b_top = tl.full((QUERY_ROWS,), float("-inf"), tl.float32)
    b_sum = tl.zeros((QUERY_ROWS,), tl.float32)
    b_out = tl.zeros((QUERY_ROWS, DIMS), tl.float32)
    for _ in range(num_tiles):
        _, first_key, end_key, first_token, first_position, partial, num_tokens = item
        i_head = i_work % NUM_KV_HEADS
        is_last = key + KEYS >= end_key
        b_keys = key + i_key
        b_offsets, readable = key_offsets(b_blocks, b_keys, end_key, i_head, NUM_KV_HEADS, HEAD_DIM, DIMS, BLOCK_SIZE)
        b_k = tl.load(k_cache + b_offsets, mask=readable, other=0.0)
        b_v = tl.load(v_cache + b_offsets, mask=readable, other=0.0)

        b_tokens, b_heads = i_row // GROUP, i_head * GROUP + i_row % GROUP
        exists = i_row < num_tokens * GROUP
        stored = exists[:, None] & (i_dim < HEAD_DIM)[None, :]
        if key == first_key:
            if PDL:
                tl.extra.cuda.gdc_wait()
            b_q_rows = (first_token + b_tokens).to(tl.int64) * q_stride + b_heads * HEAD_DIM
            b_q = tl.load(q + b_q_rows[:, None] + i_dim[None, :], mask=stored, other=0.0)
        b_top = tl.where(key == first_key, float("-inf"), b_top)
        b_sum = tl.where(key == first_key, 0.0, b_sum)
        b_out = tl.where(key == first_key, 0.0, b_out)
        b_positions = first_position + b_tokens
        visible = (b_keys < end_key)[None, :] & (b_keys[None, :] <= b_positions[:, None])
        if WINDOW > 0:
            visible &= b_keys[None, :] > b_positions[:, None] - WINDOW
        b_top, b_sum, b_out = attend_tile(b_q, b_k, b_v, visible, scale, b_top, b_sum, b_out)
        if is_last:
            b_mean, b_weights = weighted_mean(b_top, b_sum, b_out)
            if partial < 0:
                b_rows = (first_token + b_tokens).to(tl.int64) * num_heads + b_heads
                tl.store(out + b_rows[:, None] * HEAD_DIM + i_dim[None, :], b_mean.to(out.dtype.element_ty), mask=stored)
            else:
                b_places = (partial + b_tokens) * num_heads + b_heads
                tl.store(partial_out + b_places[:, None] * HEAD_DIM + i_dim[None, :], b_mean, mask=stored)
                tl.store(partial_weights + b_places, b_weights, mask=exists)

        # An item is read while the one before it is computed, and the blocks of a tile one tile before it is loaded.
        i_work += tl.where(is_last, num_programs, 0)
        key = tl.where(is_last, next_item[1], key + KEYS)
        item = _choose(is_last, next_item, item)
        b_blocks = load_blocks(block_table + item[0].to(tl.int64) * table_stride, key, item[2], BLOCK_SIZE, KEYS)
        next_item = _load_item(items, i_work + num_programs, num_work, NUM_KV_HEADS)
    if PDL:
        # For programs without items: who waits for this launch waits for those before.
        tl.extra.cuda.gdc_wait()


def paged_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    out: Tensor,
    tuning: Tuning | None = None,
    shared_tuning: Tuning = SHARED_TUNING,
) -> None:
    """ops.paged_attention for rows of at most MAX_DECODE_QUERY_LEN query tokens; writes their tokens of out [T, Hq, D].

    q's heads lie side by side; out is contiguous and has q's dtype, which the caches share. Without batch.decode_work it is
    planned here, once more for every layer.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads, block_size = k_cache.shape[1:3]
    assert q.stride()[1:] == (head_dim, 1)
    assert out.is_contiguous()
    assert batch.block_table.stride(1) == 1
    if batch.decode_work is None:
        batch = plan_attention(batch, num_heads, num_kv_heads, head_dim, window)
    work = batch.decode_work
    assert work is not None
    partial_out = torch.empty(work.max_partials, num_heads, head_dim, dtype=torch.float32, device=q.device)
    assert partial_out.numel() < 2**31  # kernels count in 32 bits
    partial_weights = torch.empty(work.max_partials, num_heads, dtype=torch.float32, device=q.device)
    group, dims = num_heads // num_kv_heads, padded_dims(head_dim)
    tuning = decode_tuning(head_dim, q.device) if tuning is None else tuning
    scale_log2 = scale * math.log2(math.e)
    pdl = has_pdl(q) and not batch.is_invariant  # rows wait for what others of them write in the kernel before
    if batch.shared is not None:
        attend_shared(q, k_cache, v_cache, batch, work, scale_log2, partial_out, partial_weights, shared_tuning)
    decode_attention_kernel[(min(grid_size(q, tuning), work.items.shape[0] * num_kv_heads),)](
        q,
        k_cache,
        v_cache,
        out,
        partial_out,
        partial_weights,
        batch.block_table,
        work.items,
        work.num_items,
        scale_log2,
        q.stride(0),
        batch.block_table.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        DIMS=dims,
        BLOCK_SIZE=block_size,
        KEYS=tile_keys(k_cache, dims, tuning),
        QUERY_ROWS=query_rows(group),
        WINDOW=0 if window is None else window,
        AHEAD=tuning.num_stages,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
        maxnreg=max_registers(tuning),
    )
    if work.max_partials > 1:
        merge_parts(partial_out, partial_weights, out, batch, work, query_rows(group) // group)

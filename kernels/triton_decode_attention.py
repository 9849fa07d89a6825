"""Paged attention of rows with few query tokens: every key and value is read once, by items that triton_decode_plan cut.

A grid of fixed size walks the items. Those of a query tile that is split leave float32 partial results; whichever of them is
done last merges them, always in the same order (split-KV attention as in Flash-Decoding, Dao et al. 2023). Shared chunks go
first, in a launch of their own: their partial results are there when the rows' own items are merged.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .attention_batch import AttentionBatch
from .triton_attend_keys import Tuning, attend_keys, grid_size, load_blocks, padded_dims, tile_keys
from .triton_decode_plan import ITEM_FIELDS, plan_attention, query_rows, unpack
from .triton_launch import has_pdl
from .triton_shared_attention import SHARED_TUNING, attend_shared

_TUNINGS = {
    64: Tuning(tile_bytes=8 * 1024, num_warps=4, num_stages=4, programs_per_multiprocessor=3),
    128: Tuning(tile_bytes=16 * 1024, num_warps=4, num_stages=3, programs_per_multiprocessor=3),
    256: Tuning(tile_bytes=16 * 1024, num_warps=8, num_stages=3, programs_per_multiprocessor=2),
}
"""By padded head size. Three programs keep enough bytes on their way while one of them starts or ends an item."""


def decode_tuning(head_dim: int) -> Tuning:
    """How items of single rows are launched."""
    return _TUNINGS[max(64, padded_dims(head_dim))]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _merge_parts(  # type: ignore[no-untyped-def]
    partial_out,
    partial_weights,
    out,
    first_partial,
    num_parts,
    first_token,
    num_tokens,
    i_head,
    num_heads,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Puts together the parts of a query tile, ROWS pairs of token and head and PARTS parts at a time."""
    i_dim, i_part = tl.arange(0, DIMS), tl.arange(0, PARTS)
    for first_row in range(0, num_tokens * GROUP, ROWS):
        i_row = first_row + tl.arange(0, ROWS)
        exists = i_row < num_tokens * GROUP
        b_tokens, b_heads = i_row // GROUP, i_head * GROUP + i_row % GROUP
        b_top = tl.full((ROWS,), float("-inf"), tl.float32)
        b_sum = tl.zeros((ROWS,), tl.float32)
        b_out = tl.zeros((ROWS, DIMS), tl.float32)
        for first_part in range(0, num_parts, PARTS):
            b_parts = first_part + i_part
            b_places = (first_partial + b_parts[None, :] * num_tokens + b_tokens[:, None]) * num_heads + b_heads[:, None]
            readable = exists[:, None] & (b_parts < num_parts)[None, :]
            b_logs = tl.load(partial_weights + b_places, mask=readable, other=float("-inf"))
            b_values = tl.load(
                partial_out + b_places[:, :, None] * HEAD_DIM + i_dim[None, None, :],
                mask=readable[:, :, None] & (i_dim < HEAD_DIM)[None, None, :],
                other=0.0,
            )
            b_new_top = tl.maximum(b_top, tl.max(b_logs, 1))
            b_base = tl.where(b_new_top == float("-inf"), 0.0, b_new_top)
            b_weights = tl.exp2(b_logs - b_base[:, None])
            b_shrink = tl.exp2(b_top - b_base)
            b_sum = b_sum * b_shrink + tl.sum(b_weights, 1)
            b_out = b_out * b_shrink[:, None] + tl.sum(b_weights[:, :, None] * b_values, 1)
            b_top = b_new_top
        b_out = b_out / tl.where(exists, b_sum, 1.0)[:, None]
        b_offsets = ((first_token + b_tokens).to(tl.int64) * num_heads + b_heads)[:, None] * HEAD_DIM + i_dim[None, :]
        tl.store(out + b_offsets, b_out.to(out.dtype.element_ty), mask=exists[:, None] & (i_dim < HEAD_DIM)[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _load_item(items, i_item):  # type: ignore[no-untyped-def]
    """The fields of an item."""
    fields = items + i_item * ITEM_FIELDS
    return (
        tl.load(fields),
        tl.load(fields + 1),
        tl.load(fields + 2),
        tl.load(fields + 3),
        tl.load(fields + 4),
        tl.load(fields + 5),
        tl.load(fields + 6),
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _load_first_blocks(block_table, table_stride, item, is_real, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The blocks of an item's first keys; of nothing where it is not real, whatever its fields hold."""
    table = block_table + tl.where(is_real, item[0], 0).to(tl.int64) * table_stride
    return load_blocks(table, tl.where(is_real, item[1], 0), tl.where(is_real, item[2], 0), BLOCK_SIZE, KEYS)


@triton.jit(do_not_specialize=["max_items", "table_stride"])  # type: ignore[untyped-decorator, unused-ignore]
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
    max_items,
    arrivals,
    scale,
    q_stride,
    table_stride,
    num_kv_heads,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    MERGED_ROWS: tl.constexpr,
    MERGED_PARTS: tl.constexpr,
    EVICTION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Items of single rows: program p takes items p, p + programs, ... Heads vary fastest, they lie side by side in a block."""
    i_row, i_dim = tl.arange(0, QUERY_ROWS), tl.arange(0, DIMS)
    num_heads = num_kv_heads * GROUP
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # An item is read while the one before it is computed, and its first blocks are looked up under that one's end.
    next_item = _load_item(items, tl.program_id(0) // num_kv_heads)
    num_work = tl.load(num_items) * num_kv_heads
    b_next_blocks = _load_first_blocks(block_table, table_stride, next_item, tl.program_id(0) < num_work, BLOCK_SIZE, KEYS)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for i_work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        slot, first_key, end_key, first_token, first_position, first_partial, packed = next_item
        b_blocks = b_next_blocks
        next_work = i_work + tl.num_programs(0)
        next_item = _load_item(items, tl.minimum(next_work // num_kv_heads, max_items - 1))
        i_head = i_work % num_kv_heads
        part, num_parts, num_splits, num_tokens = unpack(packed)

        exists = i_row < num_tokens * GROUP
        stored = exists[:, None] & (i_dim < HEAD_DIM)[None, :]
        b_tokens, b_heads = i_row // GROUP, i_head * GROUP + i_row % GROUP
        b_q_rows = (first_token + b_tokens).to(tl.int64) * q_stride + b_heads * HEAD_DIM
        b_q = tl.load(q + b_q_rows[:, None] + i_dim[None, :], mask=stored, other=0.0)
        b_out, b_weights = attend_keys(
            b_q,
            first_position + b_tokens,
            k_cache,
            v_cache,
            block_table + slot.to(tl.int64) * table_stride,
            b_blocks,
            i_head,
            num_kv_heads,
            first_key,
            end_key,
            scale,
            HEAD_DIM,
            DIMS,
            BLOCK_SIZE,
            KEYS,
            True,
            WINDOW,
            EVICTION,
        )
        b_next_blocks = _load_first_blocks(block_table, table_stride, next_item, next_work < num_work, BLOCK_SIZE, KEYS)
        if num_parts == 1:
            b_out_rows = (first_token + b_tokens).to(tl.int64) * num_heads + b_heads
            tl.store(out + b_out_rows[:, None] * HEAD_DIM + i_dim[None, :], b_out.to(out.dtype.element_ty), mask=stored)
        else:
            b_places = (first_partial + part * num_tokens + b_tokens) * num_heads + b_heads
            tl.store(partial_out + b_places[:, None] * HEAD_DIM + i_dim[None, :], b_out, mask=stored)
            tl.store(partial_weights + b_places, b_weights, mask=exists)
            # Every thread has written before one of them says so; who hears it from all splits reads what they wrote.
            tl.debug_barrier()
            arrival = arrivals + first_partial * num_kv_heads + i_head
            if tl.atomic_add(arrival, 1, sem="acq_rel") == num_splits - 1:
                tl.store(arrival, 0)
                _merge_parts(
                    partial_out,
                    partial_weights,
                    out,
                    first_partial,
                    num_parts,
                    first_token,
                    num_tokens,
                    i_head,
                    num_heads,
                    GROUP,
                    HEAD_DIM,
                    DIMS,
                    MERGED_ROWS,
                    MERGED_PARTS,
                )


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
    max_partials = work.arrivals.shape[0]
    partial_out = torch.empty(max_partials, num_heads, head_dim, dtype=torch.float32, device=q.device)
    assert partial_out.numel() < 2**31  # kernels count in 32 bits
    partial_weights = torch.empty(max_partials, num_heads, dtype=torch.float32, device=q.device)
    group, dims = num_heads // num_kv_heads, padded_dims(head_dim)
    tuning = decode_tuning(head_dim) if tuning is None else tuning
    scale_log2 = scale * math.log2(math.e)
    pdl = has_pdl(q) and not batch.is_invariant  # rows wait for what others of them write in the kernel before
    if batch.shared is not None:
        attend_shared(q, k_cache, v_cache, batch, work, scale_log2, partial_out, partial_weights, shared_tuning)
    num_programs = min(grid_size(q, tuning), work.items.shape[0] * num_kv_heads)
    decode_attention_kernel[(num_programs,)](
        q,
        k_cache,
        v_cache,
        out,
        partial_out,
        partial_weights,
        batch.block_table,
        work.items,
        work.num_items,
        work.items.shape[0],
        work.arrivals,
        scale_log2,
        q.stride(0),
        batch.block_table.stride(0),
        num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        DIMS=dims,
        BLOCK_SIZE=block_size,
        KEYS=tile_keys(k_cache, dims, tuning),
        QUERY_ROWS=query_rows(group),
        WINDOW=0 if window is None else window,
        MERGED_ROWS=min(4, triton.next_power_of_2(group)),
        MERGED_PARTS=8,
        EVICTION=tuning.eviction_policy,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )

"""Paged attention of rows with few query tokens: every key and value is read once, by items that triton_decode_plan cut.

A grid of fixed size walks the items. Those of a query tile that is split leave float32 partial results; whichever of them is
done last puts them together, always in the same order (split-KV attention as in Flash-Decoding, Dao et al. 2023; the
softmax is computed online, arXiv 1805.02867). Shared chunks go first, in a launch of their own: their partial results are
there when the rows' own items are put together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .attention_batch import SHARED_QUERY_ROWS, AttentionBatch, DecodeWork
from .triton_decode_plan import ITEM_FIELDS, plan_attention, query_rows

SHARED_FIELDS = tl.constexpr(5)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a launch is laid out; of no influence on what is computed, up to rounding."""

    tile_bytes: int
    """Of the keys read at a time, and as many of values."""
    num_warps: int
    num_stages: int
    programs_per_multiprocessor: int
    eviction_policy: str = ""


DECODE_TUNING = Tuning(tile_bytes=16 * 1024, num_warps=4, num_stages=3, programs_per_multiprocessor=3)
SHARED_TUNING = Tuning(tile_bytes=16 * 1024, num_warps=4, num_stages=3, programs_per_multiprocessor=2)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _attend_keys(  # type: ignore[no-untyped-def]
    b_q,
    b_positions,
    k_cache,
    v_cache,
    table,
    i_head,
    num_kv_heads,
    first_key,
    end_key,
    scale,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """Attention of queries [M, D] at positions [M] to keys first_key .. end_key - 1 of one head.

    Returns the weighted mean of the values, float32 [M, D], and the base-2 logarithm of the sum of weights, [M]: minus infinity
    where nothing is visible. `scale` is that of scores in powers of two.
    """
    i_key, i_dim = tl.arange(0, KEYS), tl.arange(0, DIMS)
    b_top = tl.full((b_q.shape[0],), float("-inf"), tl.float32)
    b_sum = tl.zeros((b_q.shape[0],), tl.float32)
    b_out = tl.zeros((b_q.shape[0], DIMS), tl.float32)
    b_keys = first_key + i_key
    # The blocks of the next keys are looked up while these are computed, so that addresses are there when loads are due.
    b_blocks = tl.load(table + b_keys // BLOCK_SIZE, mask=b_keys < end_key, other=0)
    for first in range(first_key, end_key, KEYS):
        b_keys = first + i_key
        exists = b_keys < end_key
        b_places = (b_blocks.to(tl.int64) * num_kv_heads + i_head) * BLOCK_SIZE + b_keys % BLOCK_SIZE
        b_offsets = b_places[:, None] * HEAD_DIM + i_dim[None, :]
        if DIMS == HEAD_DIM:
            readable = tl.broadcast_to(exists[:, None], (KEYS, DIMS))
        else:
            readable = exists[:, None] & (i_dim < HEAD_DIM)[None, :]
        b_next_keys = b_keys + KEYS
        b_blocks = tl.load(table + b_next_keys // BLOCK_SIZE, mask=b_next_keys < end_key, other=0)
        b_k = tl.load(k_cache + b_offsets, mask=readable, other=0.0, eviction_policy=EVICTION)
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        visible = tl.broadcast_to(exists[None, :], b_scores.shape)
        if CAUSAL:
            visible &= b_keys[None, :] <= b_positions[:, None]
        if WINDOW > 0:
            visible &= b_keys[None, :] > b_positions[:, None] - WINDOW
        b_scores = tl.where(visible, b_scores, float("-inf"))
        b_new_top = tl.maximum(b_top, tl.max(b_scores, 1))
        # Where nothing was visible so far the maximum is no number to subtract.
        b_base = tl.where(b_new_top == float("-inf"), 0.0, b_new_top)
        b_weights = tl.exp2(b_scores - b_base[:, None])
        b_shrink = tl.exp2(b_top - b_base)
        b_sum = b_sum * b_shrink + tl.sum(b_weights, 1)
        b_v = tl.load(v_cache + b_offsets, mask=readable, other=0.0, eviction_policy=EVICTION)
        b_out = b_out * b_shrink[:, None]
        b_out = tl.dot(b_weights.to(b_v.dtype), b_v, b_out, input_precision="ieee")
        b_top = b_new_top
    saw_any = b_sum > 0.0
    b_out = b_out / tl.where(saw_any, b_sum, 1.0)[:, None]
    return b_out, tl.where(saw_any, b_top + tl.log2(b_sum), float("-inf"))


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
                partial_out + b_places.to(tl.int64)[:, :, None] * HEAD_DIM + i_dim[None, None, :],
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
        tl.load(fields + 7),
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
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
):
    """Items of single rows. Program p takes items p, p + programs, ...; heads vary fastest, they lie side by side in a block."""
    i_row, i_dim = tl.arange(0, QUERY_ROWS), tl.arange(0, DIMS)
    num_heads = num_kv_heads * GROUP
    # An item is read while the one before it is computed, and the first one before it is known whether there is any.
    next_item = _load_item(items, tl.program_id(0) // num_kv_heads)
    for i_work in range(tl.program_id(0), tl.load(num_items) * num_kv_heads, tl.num_programs(0)):
        slot, first_key, end_key, first_token, num_tokens, first_position, first_partial, packed_parts = next_item
        next_item = _load_item(items, tl.minimum((i_work + tl.num_programs(0)) // num_kv_heads, max_items - 1))
        i_head = i_work % num_kv_heads
        part, num_parts, num_splits = packed_parts & 0xFF, (packed_parts >> 8) & 0xFF, packed_parts >> 16

        exists = i_row < num_tokens * GROUP
        stored = exists[:, None] & (i_dim < HEAD_DIM)[None, :]
        b_tokens, b_heads = i_row // GROUP, i_head * GROUP + i_row % GROUP
        b_q_rows = (first_token + b_tokens).to(tl.int64) * q_stride + b_heads * HEAD_DIM
        b_q = tl.load(q + b_q_rows[:, None] + i_dim[None, :], mask=stored, other=0.0)
        b_out, b_weights = _attend_keys(
            b_q,
            first_position + b_tokens,
            k_cache,
            v_cache,
            block_table + slot.to(tl.int64) * table_stride,
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
        if num_parts == 1:
            b_out_rows = (first_token + b_tokens).to(tl.int64) * num_heads + b_heads
            tl.store(out + b_out_rows[:, None] * HEAD_DIM + i_dim[None, :], b_out.to(out.dtype.element_ty), mask=stored)
        else:
            b_places = (first_partial + part * num_tokens + b_tokens) * num_heads + b_heads
            tl.store(partial_out + b_places.to(tl.int64)[:, None] * HEAD_DIM + i_dim[None, :], b_out, mask=stored)
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


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def shared_attention_kernel(  # type: ignore[no-untyped-def]
    q,
    k_cache,
    v_cache,
    partial_out,
    partial_weights,
    block_table,
    row_slots,
    query_start,
    members,
    items,
    partial_starts,
    scale,
    num_items,
    q_stride,
    table_stride,
    num_kv_heads,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """Items of chunks that several rows share: their queries lie in one tile, all see all keys, and nothing is merged yet."""
    i_row, i_dim = tl.arange(0, QUERY_ROWS), tl.arange(0, DIMS)
    num_heads = num_kv_heads * GROUP
    for i_work in range(tl.program_id(0), num_items * num_kv_heads, tl.num_programs(0)):
        fields = items + i_work // num_kv_heads * SHARED_FIELDS
        i_head = i_work % num_kv_heads
        first_member, num_members, first_key, end_key = (
            tl.load(fields),
            tl.load(fields + 1),
            tl.load(fields + 2),
            tl.load(fields + 3),
        )
        if num_members > 0:
            slot = tl.load(row_slots + tl.load(members + first_member))
            exists = i_row < num_members * GROUP
            b_batch_rows = tl.load(members + first_member + i_row // GROUP, mask=exists, other=0)
            b_partials = tl.load(partial_starts + b_batch_rows, mask=exists, other=-1)
            exists &= b_partials >= 0
            stored = exists[:, None] & (i_dim < HEAD_DIM)[None, :]
            b_heads = i_head * GROUP + i_row % GROUP
            b_tokens = tl.load(query_start + b_batch_rows, mask=exists, other=0)
            b_q_rows = b_tokens.to(tl.int64) * q_stride + b_heads * HEAD_DIM
            b_q = tl.load(q + b_q_rows[:, None] + i_dim[None, :], mask=stored, other=0.0)
            b_out, b_weights = _attend_keys(
                b_q,
                b_tokens,
                k_cache,
                v_cache,
                block_table + slot.to(tl.int64) * table_stride,
                i_head,
                num_kv_heads,
                first_key,
                end_key,
                scale,
                HEAD_DIM,
                DIMS,
                BLOCK_SIZE,
                KEYS,
                False,
                0,
                EVICTION,
            )
            b_places = (b_partials + tl.load(fields + 4)) * num_heads + b_heads
            tl.store(partial_out + b_places.to(tl.int64)[:, None] * HEAD_DIM + i_dim[None, :], b_out, mask=stored)
            tl.store(partial_weights + b_places, b_weights, mask=exists)


def paged_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    out: Tensor,
    tuning: Tuning = DECODE_TUNING,
    shared_tuning: Tuning = SHARED_TUNING,
) -> None:
    """ops.paged_attention for rows of at most MAX_DECODE_QUERY_LEN query tokens; writes their tokens of out [T, Hq, D].

    q's heads lie side by side; out is contiguous and has q's dtype, which the caches share. Without batch.decode_work it is
    planned here, once more for every layer.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads, block_size = k_cache.shape[1:3]
    assert q.stride(1) == head_dim and q.stride(2) == 1 and out.is_contiguous() and batch.block_table.stride(1) == 1
    if batch.decode_work is None:
        batch = plan_attention(batch, num_heads, num_kv_heads, head_dim, window)
    work = batch.decode_work
    assert work is not None
    max_partials = work.arrivals.shape[0]
    partial_out = torch.empty(max_partials, num_heads, head_dim, dtype=torch.float32, device=q.device)
    partial_weights = torch.empty(max_partials, num_heads, dtype=torch.float32, device=q.device)
    group, dims = num_heads // num_kv_heads, max(16, triton.next_power_of_2(head_dim))
    scale_log2 = scale * math.log2(math.e)
    if batch.shared is not None:
        _attend_shared(q, k_cache, v_cache, batch, work, scale_log2, partial_out, partial_weights, shared_tuning)
    num_programs = min(_grid_size(q, tuning), work.items.shape[0] * num_kv_heads)
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
        KEYS=_tile_keys(k_cache, dims, tuning),
        QUERY_ROWS=query_rows(group),
        WINDOW=0 if window is None else window,
        MERGED_ROWS=min(4, triton.next_power_of_2(group)),
        MERGED_PARTS=8,
        EVICTION=tuning.eviction_policy,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )


def _attend_shared(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    work: DecodeWork,
    scale_log2: float,
    partial_out: Tensor,
    partial_weights: Tensor,
    tuning: Tuning,
) -> None:
    """Partial results of the rows' shared chunks."""
    shared = batch.shared
    assert shared is not None
    num_heads, head_dim = q.shape[1:]
    num_kv_heads, block_size = k_cache.shape[1:3]
    dims, num_items = max(16, triton.next_power_of_2(head_dim)), shared.items.shape[0]
    shared_attention_kernel[(min(_grid_size(q, tuning), num_items * num_kv_heads),)](
        q,
        k_cache,
        v_cache,
        partial_out,
        partial_weights,
        batch.block_table,
        batch.row_slots,
        batch.query_start,
        shared.members,
        shared.items,
        work.partial_starts,
        scale_log2,
        num_items,
        q.stride(0),
        batch.block_table.stride(0),
        num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        DIMS=dims,
        BLOCK_SIZE=block_size,
        KEYS=_tile_keys(k_cache, dims, tuning),
        QUERY_ROWS=SHARED_QUERY_ROWS,
        EVICTION=tuning.eviction_policy,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )


def _tile_keys(k_cache: Tensor, dims: int, tuning: Tuning) -> int:
    return max(16, tuning.tile_bytes // (dims * k_cache.element_size()))


def _grid_size(q: Tensor, tuning: Tuning) -> int:
    return _num_multiprocessors(q.device) * tuning.programs_per_multiprocessor


def _num_multiprocessors(device: torch.device) -> int:
    """A device that is not there (the interpreter's) counts as a small one."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count

"""Paged attention to chunks of keys that several rows share: their queries are packed into one tile, so each is read once.

Leaves partial results of each row, which are merged with those of the row's own items (triton_merge_parts).
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .attention_batch import SHARED_QUERY_ROWS, AttentionBatch, DecodeWork
from .triton_attend_keys import (
    Tuning,
    attend_tile,
    grid_size,
    key_offsets,
    load_blocks,
    padded_dims,
    tile_keys,
    weighted_mean,
)
from .triton_launch import has_pdl

SHARED_FIELDS = tl.constexpr(5)
SHARED_TUNING = Tuning(tile_bytes=16 * 1024, num_warps=8, num_stages=2, programs_per_multiprocessor=2)


@triton.jit(do_not_specialize=["num_items", "table_stride"])  # type: ignore[untyped-decorator, unused-ignore]
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
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Items of chunks that several rows share: their queries lie in one tile, all see all keys, and nothing is merged yet."""
    i_row, i_dim, i_key = tl.arange(0, QUERY_ROWS), tl.arange(0, DIMS), tl.arange(0, KEYS)
    num_heads = NUM_KV_HEADS * GROUP
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for i_work in range(tl.program_id(0), num_items * NUM_KV_HEADS, tl.num_programs(0)):
        fields = items + i_work // NUM_KV_HEADS * SHARED_FIELDS
        i_head = i_work % NUM_KV_HEADS
        first_member, num_members, first_key, end_key = (
            tl.load(fields),
            tl.load(fields + 1),
            tl.load(fields + 2),
            tl.load(fields + 3),
        )
        if num_members > 0:
            slot = tl.load(row_slots + tl.load(members + first_member))
            table = block_table + slot.to(tl.int64) * table_stride
            exists = i_row < num_members * GROUP
            b_batch_rows = tl.load(members + first_member + i_row // GROUP, mask=exists, other=0)
            b_partials = tl.load(partial_starts + b_batch_rows, mask=exists, other=-1)
            exists &= b_partials >= 0
            stored = exists[:, None] & (i_dim < HEAD_DIM)[None, :]
            b_heads = i_head * GROUP + i_row % GROUP
            b_tokens = tl.load(query_start + b_batch_rows, mask=exists, other=0)
            b_q_rows = b_tokens.to(tl.int64) * q_stride + b_heads * HEAD_DIM
            b_q = tl.load(q + b_q_rows[:, None] + i_dim[None, :], mask=stored, other=0.0)
            b_blocks = load_blocks(table, first_key, end_key, BLOCK_SIZE, KEYS)
            b_top = tl.full((QUERY_ROWS,), float("-inf"), tl.float32)
            b_sum = tl.zeros((QUERY_ROWS,), tl.float32)
            b_out = tl.zeros((QUERY_ROWS, DIMS), tl.float32)
            for key in range(first_key, end_key, KEYS):
                b_keys = key + i_key
                b_offsets, readable = key_offsets(b_blocks, b_keys, end_key, i_head, NUM_KV_HEADS, HEAD_DIM, DIMS, BLOCK_SIZE)
                b_blocks = load_blocks(table, key + KEYS, end_key, BLOCK_SIZE, KEYS)
                b_k = tl.load(k_cache + b_offsets, mask=readable, other=0.0)
                b_v = tl.load(v_cache + b_offsets, mask=readable, other=0.0)
                visible = tl.broadcast_to((b_keys < end_key)[None, :], (QUERY_ROWS, KEYS))
                b_top, b_sum, b_out = attend_tile(b_q, b_k, b_v, visible, scale, b_top, b_sum, b_out)
            b_out, b_weights = weighted_mean(b_top, b_sum, b_out)
            b_places = (b_partials + tl.load(fields + 4)) * num_heads + b_heads
            tl.store(partial_out + b_places[:, None] * HEAD_DIM + i_dim[None, :], b_out, mask=stored)
            tl.store(partial_weights + b_places, b_weights, mask=exists)


def attend_shared(
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
    """Writes partial results [max_partials, Hq, D] and their logarithmic weights [max_partials, Hq] of batch.shared."""
    shared = batch.shared
    assert shared is not None
    num_heads, head_dim = q.shape[1:]
    num_kv_heads, block_size = k_cache.shape[1:3]
    pdl = has_pdl(q)
    dims, num_items = padded_dims(head_dim), shared.items.shape[0]
    shared_attention_kernel[(min(grid_size(q, tuning), num_items * num_kv_heads),)](
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
        NUM_KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        DIMS=dims,
        BLOCK_SIZE=block_size,
        KEYS=tile_keys(k_cache, dims, tuning),
        QUERY_ROWS=SHARED_QUERY_ROWS,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )

"""Attention of prompt chunks in Triton: causal, of any lengths, keys and values in the paged cache.

FlashAttention-2's forward pass (Dao 2023, arXiv 2307.08691) with the query heads of one KV head packed into the rows of a
tile. Which program does what is read from a table on the device (see triton_prefill_plan), so a CUDA graph replays it for
any batch of its padded size.
"""

from __future__ import annotations

import math

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .attention_batch import AttentionBatch
from .prefill_work import KeyTiles, choose_key_tiles
from .triton_prefill_plan import plan_prefill

LOWEST = tl.constexpr(-1.0e30)
"""The maximum of a query that has seen no key yet: finite, so that keys it may not see, whose scores are minus infinity, weigh
exp2(-inf - LOWEST) = 0. Were their scores finite, too, the difference would be 0 only if nothing was rounded: a GPU fuses it
with the product before it, and what that rounds of a number so large is itself beyond exp2's range."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _block_ids(table, b_key, first_visible, end_visible, BLOCK_SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The block of each key; 0 outside [first_visible, end_visible), where the table may hold anything."""
    return tl.load(table + b_key // BLOCK_SIZE, mask=(b_key >= first_visible) & (b_key < end_visible), other=0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _attend(  # type: ignore[no-untyped-def]
    b_acc,
    b_sum,
    b_max,
    b_q,
    b_position,
    k_cache,
    v_cache,
    table,
    i_head,
    first_key,
    end_key,
    first_visible,
    end_visible,
    scale_log2,
    WINDOW: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the keys [first_key, end_key), whole tiles, to the running softmax of a tile of queries.

    MASKED where some query may not see some of these keys. No key outside [first_visible, end_visible) is read then; without
    MASKED all must lie inside.
    """
    o_key = tl.arange(0, BLOCK_N)
    o_dim = tl.arange(0, BLOCK_D)
    # The block ids of a tile are read one tile ahead: without them its loads cannot begin.
    b_next_block = _block_ids(table, first_key + o_key, first_visible, end_visible, BLOCK_SIZE)
    for start in tl.range(first_key, end_key, BLOCK_N):
        b_key = start + o_key
        b_block = b_next_block
        b_next_block = _block_ids(table, b_key + BLOCK_N, first_visible, end_visible, BLOCK_SIZE)
        o_row = b_block.to(tl.int64) * (NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM)
        o_row += (i_head * BLOCK_SIZE + b_key % BLOCK_SIZE) * HEAD_DIM
        p_k = k_cache + o_row[:, None] + o_dim[None, :]
        p_v = v_cache + o_row[:, None] + o_dim[None, :]
        if MASKED:
            b_readable = (b_key >= first_visible) & (b_key < end_visible)
            b_mask = b_readable[:, None] & (o_dim[None, :] < HEAD_DIM)
            b_k = tl.load(p_k, mask=b_mask, other=0.0)
            b_v = tl.load(p_v, mask=b_mask, other=0.0)
        elif HEAD_DIM < BLOCK_D:
            b_k = tl.load(p_k, mask=o_dim[None, :] < HEAD_DIM, other=0.0)
            b_v = tl.load(p_v, mask=o_dim[None, :] < HEAD_DIM, other=0.0)
        else:
            b_k = tl.load(p_k)
            b_v = tl.load(p_v)
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        if MASKED:
            b_sees = b_key[None, :] <= b_position[:, None]
            if WINDOW > 0:
                b_sees &= b_key[None, :] > b_position[:, None] - WINDOW
            b_score = tl.where(b_sees, b_score, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_score, 1) * scale_log2)
        b_weight = tl.exp2(b_score * scale_log2 - b_new_max[:, None])
        b_fade = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_fade + tl.sum(b_weight, 1)
        b_acc = b_acc * b_fade[:, None]
        b_acc = tl.dot(b_weight.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)
        b_max = b_new_max
    return b_acc, b_sum, b_max


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _prefill_kernel(  # type: ignore[no-untyped-def]
    out,
    q,
    k_cache,
    v_cache,
    tiles,
    block_table,
    out_stride,
    q_stride,
    table_stride,
    scale_log2,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of queries and one KV head: rows token * GROUP + query head of the group."""
    i_head = tl.program_id(0)
    tile = tiles + tl.program_id(1) * 4
    first_token = tl.load(tile)
    num_queries = tl.load(tile + 1)
    first_position = tl.load(tile + 2)
    slot = tl.load(tile + 3)
    if num_queries == 0:
        return

    i_row = tl.arange(0, BLOCK_M)
    i_query = i_row // GROUP
    o_dim = tl.arange(0, BLOCK_D)
    b_mask = (i_query < num_queries)[:, None] & (o_dim[None, :] < HEAD_DIM)
    o_row = (i_head * GROUP + i_row % GROUP) * HEAD_DIM
    b_token = (first_token + i_query).to(tl.int64)
    b_q = tl.load(q + (b_token * q_stride + o_row)[:, None] + o_dim[None, :], mask=b_mask, other=0.0)
    b_position = first_position + i_query
    b_max = tl.full((BLOCK_M,), LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    table = block_table + slot.to(tl.int64) * table_stride
    # Keys [seen_by_all, below_diagonal) are seen by every query of the tile, the tiles of keys before and after by some.
    end_visible = first_position + num_queries
    below_diagonal = (first_position + 1) // BLOCK_N * BLOCK_N
    first_visible = 0
    seen_by_all = 0
    if WINDOW > 0:
        first_visible = tl.maximum(first_position - WINDOW + 1, 0)
        seen_by_all = tl.cdiv(tl.maximum(end_visible - WINDOW, 0), BLOCK_N) * BLOCK_N
        seen_by_all = tl.minimum(seen_by_all, tl.cdiv(end_visible, BLOCK_N) * BLOCK_N)
        below_diagonal = tl.maximum(below_diagonal, seen_by_all)
        b_acc, b_sum, b_max = _attend(
            b_acc, b_sum, b_max, b_q, b_position, k_cache, v_cache, table, i_head,
            first_visible // BLOCK_N * BLOCK_N, seen_by_all, first_visible, end_visible, scale_log2,
            WINDOW, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, True, PRECISION,
        )  # fmt: skip
    b_acc, b_sum, b_max = _attend(
        b_acc, b_sum, b_max, b_q, b_position, k_cache, v_cache, table, i_head,
        seen_by_all, below_diagonal, first_visible, end_visible, scale_log2,
        WINDOW, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, False, PRECISION,
    )  # fmt: skip
    b_acc, b_sum, b_max = _attend(
        b_acc, b_sum, b_max, b_q, b_position, k_cache, v_cache, table, i_head,
        below_diagonal, end_visible, first_visible, end_visible, scale_log2,
        WINDOW, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, True, PRECISION,
    )  # fmt: skip

    p_out = out + (b_token * out_stride + o_row)[:, None] + o_dim[None, :]
    tl.store(p_out, (b_acc / b_sum[:, None]).to(out.dtype.element_ty), mask=b_mask)


def paged_prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    out: Tensor,
    key_tiles: KeyTiles | None = None,
) -> None:
    """ops.paged_attention for rows of more than MAX_DECODE_QUERY_LEN query tokens; writes their tokens of out [T, Hq, D].

    The heads of a token lie side by side in q and out; the caches are as made by ops.make_kv_cache and hold the new keys and
    values. Without batch.prefill_work the tiles are listed here, once more for every layer.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    assert q.stride()[1:] == out.stride()[1:] == (head_dim, 1)
    assert k_cache.is_contiguous()
    assert v_cache.is_contiguous()
    if batch.prefill_work is None:
        batch = plan_prefill(batch, num_heads, num_kv_heads, head_dim)
    work = batch.prefill_work
    assert work is not None
    key_tiles = key_tiles or choose_key_tiles(num_tokens, work.tile_rows, head_dim, window, q.dtype, q.device)
    _prefill_kernel[(num_kv_heads, work.tiles.shape[0])](
        out,
        q,
        k_cache,
        v_cache,
        work.tiles,
        batch.block_table,
        out.stride(0),
        q.stride(0),
        batch.block_table.stride(0),
        scale * math.log2(math.e),
        WINDOW=window or 0,
        GROUP=num_heads // num_kv_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),  # 16: the smallest matrix product
        BLOCK_M=work.tile_rows,
        BLOCK_N=key_tiles.num_keys,
        BLOCK_SIZE=block_size,
        PRECISION="ieee",
        num_warps=key_tiles.num_warps,
        num_stages=key_tiles.num_stages,
        maxnreg=key_tiles.max_registers,
    )

"""Cuts the attention of rows with few query tokens into work items, on the device, once per step and KV group.

A row's keys are cut into splits whose size depends on the row's own number of keys alone, so that its result does not depend
on what else is in the batch. Query tokens are taken in tiles of as many as fit the smallest matrix product together with the
heads that share a KV head. An item is one (query tile, split), for all KV heads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from .attention_batch import MAX_DECODE_QUERY_LEN, MAX_SHARED_CHUNKS, AttentionBatch, DecodeWork
from .triton_attend_keys import padded_dims

ITEM_FIELDS = tl.constexpr(8)
"""Of an item: slot; first and end of its keys; first query token and its position; its first token's partial result, negative
where the row is not split; query tokens; whether keys are among those of the row's new tokens."""
MIN_QUERY_ROWS = 16
"""Rows of the smallest matrix product."""
MAX_SPLITS = 16
SPLIT_BYTES = 128 * 1024
"""Keys and values of one KV head in the smallest split, in 16-bit numbers."""
_ROWS_PER_PROGRAM = 16
_MIN_ROWS = 256
"""That a program loads, so that few versions of the kernel are compiled; loads of rows that are not there cost nothing."""


def min_split_keys(head_dim: int) -> int:
    """Keys of the smallest split."""
    return SPLIT_BYTES // (4 * padded_dims(head_dim))


def query_rows(group: int) -> int:
    """Rows of a tile of queries: pairs of query token and one of the `group` heads that share a KV head."""
    return max(MIN_QUERY_ROWS, 1 << (group - 1).bit_length())


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _cut(  # type: ignore[no-untyped-def]
    b_context_lens,
    b_query_lens,
    b_shared_lens,
    split_keys,
    max_splits,
    WINDOW: tl.constexpr,
    MAX_QUERY_LEN: tl.constexpr,
):
    """(first key, keys per split, number of splits) of rows; no splits for rows that are not ours."""
    b_first_keys = b_shared_lens
    if WINDOW > 0:
        b_first_keys = tl.maximum(b_context_lens - b_query_lens - WINDOW + 1, 0)
    b_num_keys = b_context_lens - b_first_keys
    b_split_keys = tl.maximum(tl.cdiv(tl.cdiv(b_num_keys, max_splits), split_keys), 1) * split_keys
    # The last split takes what is left, half a split less or more: nobody waits for a split of a few keys.
    b_num_splits = tl.maximum((b_num_keys + b_split_keys // 2) // b_split_keys, 1)
    is_ours = (b_context_lens > 0) & (b_query_lens > 0) & (b_query_lens <= MAX_QUERY_LEN)
    return b_first_keys, b_split_keys, tl.where(is_ours, b_num_splits, 0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _load_rows(query_start, context_lens, shared_lens, num_chunks, i_rows, num_rows, HAS_SHARED: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first token, query length, context length, shared length, shared chunks) of rows."""
    exists = i_rows < num_rows
    b_starts = tl.load(query_start + i_rows, mask=exists, other=0)
    b_query_lens = tl.load(query_start + i_rows + 1, mask=exists, other=0) - b_starts
    b_context_lens = tl.load(context_lens + i_rows, mask=exists, other=0)
    b_shared_lens = tl.zeros_like(b_starts)
    b_num_chunks = tl.zeros_like(b_starts)
    if HAS_SHARED:
        b_shared_lens = tl.load(shared_lens + i_rows, mask=exists, other=0)
        b_num_chunks = tl.load(num_chunks + i_rows, mask=exists, other=0)
    return b_starts, b_query_lens, b_context_lens, b_shared_lens, b_num_chunks


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _count(b_query_lens, b_num_splits, b_num_chunks, TILE_TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(items, partial results) of rows; what is not split has no partial results."""
    b_num_parts = b_num_splits + b_num_chunks
    b_partials = tl.where((b_num_splits > 0) & (b_num_parts > 1), b_num_parts * b_query_lens, 0)
    return b_num_splits * tl.cdiv(b_query_lens, TILE_TOKENS), b_partials


@triton.jit(do_not_specialize=["num_rows", "split_keys", "max_splits"])  # type: ignore[untyped-decorator, unused-ignore]
def plan_decode_kernel(  # type: ignore[no-untyped-def]
    row_slots,
    query_start,
    context_lens,
    shared_lens,
    num_chunks,
    items,
    num_items,
    partial_starts,
    row_parts,
    num_rows,
    split_keys,
    max_splits,
    WINDOW: tl.constexpr,
    MAX_QUERY_LEN: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program p writes the items of ROWS rows; what the rows before them take, it counts itself."""
    first_row = tl.program_id(0) * ROWS
    i_all = tl.arange(0, ALL_ROWS)
    _, b_lens, b_contexts, b_shared, b_chunks = _load_rows(
        query_start, context_lens, shared_lens, num_chunks, i_all, num_rows, HAS_SHARED
    )
    _, _, b_splits = _cut(b_contexts, b_lens, b_shared, split_keys, max_splits, WINDOW, MAX_QUERY_LEN)
    b_items, b_partials = _count(b_lens, b_splits, b_chunks, TILE_TOKENS)
    items_before = tl.sum(tl.where(i_all < first_row, b_items, 0))
    partials_before = tl.sum(tl.where(i_all < first_row, b_partials, 0))
    if tl.program_id(0) == 0:
        tl.store(num_items, tl.sum(b_items))

    i_rows = first_row + tl.arange(0, ROWS)
    exists = i_rows < num_rows
    b_starts, b_lens, b_contexts, b_shared, b_chunks = _load_rows(
        query_start, context_lens, shared_lens, num_chunks, i_rows, num_rows, HAS_SHARED
    )
    b_slots = tl.load(row_slots + i_rows, mask=exists, other=0)
    b_first_keys, b_split_keys, b_splits = _cut(b_contexts, b_lens, b_shared, split_keys, max_splits, WINDOW, MAX_QUERY_LEN)
    b_items, b_partials = _count(b_lens, b_splits, b_chunks, TILE_TOKENS)
    b_first_items = items_before + tl.cumsum(b_items) - b_items
    b_first_partials = partials_before + tl.cumsum(b_partials) - b_partials
    # A row that turned to padding on the device takes no part in shared items, and nothing of it is merged.
    tl.store(partial_starts + i_rows, tl.where(b_splits > 0, b_first_partials, -1), mask=exists)
    tl.store(row_parts + i_rows, tl.where(b_splits > 0, b_splits + b_chunks, 0), mask=exists)

    i_columns = tl.arange(0, COLUMNS)[None, :]
    is_item = i_columns < b_items[:, None]
    b_divisors = tl.maximum(b_splits, 1)[:, None]
    b_tiles = i_columns // b_divisors
    b_parts = i_columns % b_divisors
    b_num_parts = (b_splits + b_chunks)[:, None]
    b_item_keys = b_first_keys[:, None] + b_parts * b_split_keys[:, None]
    b_ends = tl.where(b_parts == b_splits[:, None] - 1, b_contexts[:, None], b_item_keys + b_split_keys[:, None])
    b_tile_tokens = tl.minimum(b_lens[:, None] - b_tiles * TILE_TOKENS, TILE_TOKENS)
    b_tile_partials = b_first_partials[:, None] + b_tiles * TILE_TOKENS * b_num_parts
    fields = items + (b_first_items[:, None] + i_columns) * ITEM_FIELDS
    tl.store(fields, b_slots[:, None], mask=is_item)
    tl.store(fields + 1, b_item_keys, mask=is_item)
    tl.store(fields + 2, b_ends, mask=is_item)
    tl.store(fields + 3, b_starts[:, None] + b_tiles * TILE_TOKENS, mask=is_item)
    tl.store(fields + 4, (b_contexts - b_lens)[:, None] + b_tiles * TILE_TOKENS, mask=is_item)
    b_partials = b_tile_partials + (b_parts + b_chunks[:, None]) * b_tile_tokens
    tl.store(fields + 5, tl.where(b_num_parts > 1, b_partials, -1), mask=is_item)
    tl.store(fields + 6, b_tile_tokens, mask=is_item)
    tl.store(fields + 7, (b_ends > (b_contexts - b_lens)[:, None]).to(tl.int32), mask=is_item)


def plan_attention(
    batch: AttentionBatch, num_heads: int, num_kv_heads: int, head_dim: int, window: int | None
) -> AttentionBatch:
    """See ops.plan_attention."""
    assert window is None or batch.shared is None
    assert all(tensor.is_contiguous() for tensor in (batch.row_slots, batch.query_start, batch.context_lens))
    device, num_rows = batch.context_lens.device, batch.context_lens.shape[0]
    group = num_heads // num_kv_heads
    tile_tokens = query_rows(group) // group
    query_len = min(batch.max_query_len, MAX_DECODE_QUERY_LEN)
    num_tiles = -(-query_len // tile_tokens)
    num_keys = batch.max_context_len if window is None else min(batch.max_context_len, window + query_len - 1)
    smallest = min_split_keys(head_dim)
    num_splits = max(1, min(MAX_SPLITS, (num_keys + smallest // 2) // smallest))
    max_parts = num_splits + (MAX_SHARED_CHUNKS if batch.shared is not None else 0)
    max_partials = min(batch.kv_slots.shape[0], num_rows * query_len) * max_parts if max_parts > 1 else 1

    def integers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    work = DecodeWork(
        items=integers(num_rows * num_tiles * num_splits, ITEM_FIELDS.value),
        num_items=integers(1),
        partial_starts=integers(num_rows),
        row_parts=integers(num_rows),
        max_partials=max_partials,
    )
    shared_lens, num_chunks = batch.context_lens, batch.context_lens
    if batch.shared is not None:
        shared_lens, num_chunks = batch.shared.shared_lens, batch.shared.num_chunks
    plan_decode_kernel[(triton.cdiv(num_rows, _ROWS_PER_PROGRAM),)](
        batch.row_slots,
        batch.query_start,
        batch.context_lens,
        shared_lens,
        num_chunks,
        work.items,
        work.num_items,
        work.partial_starts,
        work.row_parts,
        num_rows,
        smallest,
        MAX_SPLITS,
        WINDOW=0 if window is None else window,
        MAX_QUERY_LEN=MAX_DECODE_QUERY_LEN,
        TILE_TOKENS=tile_tokens,
        HAS_SHARED=batch.shared is not None,
        ALL_ROWS=max(_MIN_ROWS, triton.next_power_of_2(num_rows)),
        ROWS=_ROWS_PER_PROGRAM,
        COLUMNS=triton.next_power_of_2(num_tiles * MAX_SPLITS),
        num_warps=4,
    )
    return replace(batch, decode_work=work)

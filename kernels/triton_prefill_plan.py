"""Lists the tiles of a step's prompt chunks on the device, heaviest first, without sorting."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from .attention_batch import MAX_DECODE_QUERY_LEN, AttentionBatch, PrefillWork
from .prefill_work import choose_tile_rows, max_prefill_tiles

_COMPARISONS = 4096
"""Pairs of tile and row that a program holds in registers at a time."""
_FEW_ROWS, _MANY_ROWS = 64, 256
"""That a program compares with, so that few versions of the kernel are compiled."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _plan_kernel(  # type: ignore[no-untyped-def]
    tiles,
    query_start,
    context_lens,
    row_slots,
    num_rows,
    LONGER_THAN: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """One row: the place of each of its tiles is the number of tiles in the batch that end at a later position.

    The tiles of a row end at regular positions, so those of another row that end later are counted by one division. Of equal
    ones the lower row's comes first.
    """
    i_row = tl.program_id(0)
    first_token = tl.load(query_start + i_row)
    query_len = tl.load(query_start + i_row + 1) - first_token
    context_len = tl.load(context_lens + i_row)
    if (query_len <= LONGER_THAN) | (context_len == 0):
        return
    slot = tl.load(row_slots + i_row)
    first_position = context_len - query_len

    o_row = tl.arange(0, BLOCK_ROWS)
    b_valid = o_row < num_rows
    b_query_len = tl.load(query_start + o_row + 1, mask=b_valid, other=0) - tl.load(query_start + o_row, mask=b_valid, other=0)
    b_context_len = tl.load(context_lens + o_row, mask=b_valid, other=0)
    b_is_long = (b_query_len > LONGER_THAN) & (b_context_len > 0)
    b_num_tiles = tl.where(b_is_long, tl.cdiv(b_query_len, QUERIES), 0)
    b_start = b_context_len - b_query_len
    for first_tile in tl.range(0, tl.cdiv(query_len, QUERIES), BLOCK_TILES):
        b_tile = first_tile + tl.arange(0, BLOCK_TILES)
        b_end = first_position + (b_tile + 1) * QUERIES
        b_lead = b_end[:, None] - b_start[None, :] - (o_row < i_row).to(tl.int32)[None, :]
        b_not_later = tl.minimum(tl.maximum(b_lead, 0) // QUERIES, b_num_tiles[None, :])
        b_place = tl.sum(b_num_tiles[None, :] - b_not_later, 1)
        b_offset = b_tile * QUERIES
        b_mask = b_offset < query_len
        p_tile = tiles + b_place * 4
        tl.store(p_tile, first_token + b_offset, mask=b_mask)
        tl.store(p_tile + 1, tl.minimum(query_len - b_offset, QUERIES), mask=b_mask)
        tl.store(p_tile + 2, first_position + b_offset, mask=b_mask)
        tl.store(p_tile + 3, tl.zeros_like(b_tile) + slot, mask=b_mask)


def plan_prefill(batch: AttentionBatch, num_heads: int, num_kv_heads: int, head_dim: int) -> AttentionBatch:
    """The batch with the tiles of its rows that are too long for the decode kernel; see ops.plan_attention."""
    num_tokens = batch.kv_slots.shape[0]
    tile_rows = choose_tile_rows(num_tokens, num_heads, head_dim, batch.query_start.device)
    return replace(batch, prefill_work=list_tiles(batch, num_heads // num_kv_heads, tile_rows))


def list_tiles(batch: AttentionBatch, group: int, tile_rows: int) -> PrefillWork:
    """Tiles of tile_rows // group queries each; `group` query heads share a KV head."""
    num_tokens, num_rows = batch.kv_slots.shape[0], batch.context_lens.shape[0]
    queries = tile_rows // group
    max_tiles = max_prefill_tiles(num_tokens, num_rows, queries)
    tiles = torch.zeros((max_tiles, 4), dtype=torch.int32, device=batch.query_start.device)
    block_rows = _FEW_ROWS if num_rows <= _FEW_ROWS else max(_MANY_ROWS, triton.next_power_of_2(num_rows))
    _plan_kernel[(num_rows,)](
        tiles,
        batch.query_start,
        batch.context_lens,
        batch.row_slots,
        num_rows,
        LONGER_THAN=MAX_DECODE_QUERY_LEN,
        QUERIES=queries,
        BLOCK_ROWS=block_rows,
        BLOCK_TILES=min(256, max(8, _COMPARISONS // block_rows)),
    )
    return PrefillWork(tiles=tiles, tile_rows=tile_rows)

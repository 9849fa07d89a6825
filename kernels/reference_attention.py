"""Plain-PyTorch twin of paged attention: keys and values gathered per request, float32 arithmetic.

Neighbouring requests with one query each (decode) are gathered and computed together, padded to the longest context, unless the
batch is to be invariant; any other request is computed alone. Gathering never leaves the context: positions beyond it are
replaced by the last one inside and then masked, so that whatever lies in stale or unwritten places, NaN included, has no
influence. Padding rows are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_batch import AttentionBatch

MAX_GATHERED_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Bounds the temporary copy of keys (and that of values, and the scores) of one round: on a CPU to what its caches hold, on a
GPU to 128 MiB each."""


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """See ops.paged_attention."""
    output = torch.empty_like(q)
    num_kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    max_keys = 0 if batch.is_invariant else MAX_GATHERED_ELEMENTS[q.device.type] // (num_kv_heads * head_dim)
    tables = batch.block_table[:, : -(-batch.max_context_len // k_cache.shape[2])]
    for rows in _rounds(_host_lengths(batch), max_keys, window):
        first_row, num_rows = rows.first_row, rows.num_rows
        table = tables.index_select(0, batch.row_slots[first_row : first_row + num_rows])
        context_lens = batch.context_lens[first_row : first_row + num_rows].long()
        # [n] -> [n, L]: every key's position, clamped to what the first query may see at all.
        lowest = context_lens - rows.num_keys
        positions = lowest.clamp_min(0).unsqueeze(1) + torch.arange(rows.num_keys, device=q.device)
        readable = torch.minimum(positions, context_lens.unsqueeze(1) - 1)
        keys, values = _gather(k_cache, v_cache, table, readable)
        tokens = slice(rows.first_token, rows.first_token + num_rows * rows.query_len)
        queries = q[tokens].reshape(num_rows, rows.query_len, num_kv_heads, -1, head_dim)
        attended = _attend(queries, keys, values, positions, context_lens, scale, window)
        output[tokens] = attended.reshape(num_rows * rows.query_len, *q.shape[1:]).to(q.dtype)
    return output


@dataclass(frozen=True, slots=True)
class _Rows:
    """Neighbouring requests of equal query length that are computed in one round."""

    first_row: int
    num_rows: int
    first_token: int
    query_len: int
    num_keys: int
    """Keys gathered per request: the longest stretch any of them has to see."""


def _host_lengths(batch: AttentionBatch) -> list[tuple[int, int]]:
    """(query length, context length) of every request."""
    lengths = batch.host_lengths
    if lengths is None:
        lengths = torch.stack((batch.query_start.diff(), batch.context_lens)).cpu()
    query_lens, context_lens = lengths.tolist()
    return list(zip(query_lens, context_lens, strict=True))


def _rounds(lengths: list[tuple[int, int]], max_keys: int, window: int | None) -> Iterator[_Rows]:
    """Cuts the batch into rounds: single-query neighbours together up to `max_keys` (gathered ones), others alone."""
    pending: _Rows | None = None
    first_token = 0
    for row, (query_len, context_len) in enumerate(lengths):
        num_keys = context_len if window is None else min(context_len, query_len + window - 1)
        if pending is not None and query_len == 1 and context_len > 0:
            longest = max(pending.num_keys, num_keys)
            if (pending.num_rows + 1) * longest <= max_keys:
                pending = _Rows(pending.first_row, pending.num_rows + 1, pending.first_token, 1, longest)
                first_token += 1
                continue
        if pending is not None:
            yield pending
            pending = None
        if query_len == 1 and context_len > 0:
            pending = _Rows(row, 1, first_token, 1, num_keys)
        elif query_len > 1 and context_len > 0:
            yield _Rows(row, 1, first_token, query_len, num_keys)
        first_token += query_len
    if pending is not None:
        yield pending


def _gather(k_cache: Tensor, v_cache: Tensor, table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values at `positions` [n, L] of n requests, float32 [n, Hkv, L, D]."""
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    columns = torch.div(positions, block_size, rounding_mode="floor")
    blocks = table.long().gather(1, columns)
    heads = torch.arange(num_kv_heads, device=table.device).view(1, -1, 1)
    index = (blocks.unsqueeze(1) * num_kv_heads + heads) * block_size + (positions - columns * block_size).unsqueeze(1)
    shape = (*index.shape, head_dim)
    flat_index = index.view(-1)
    keys = k_cache.view(-1, head_dim).index_select(0, flat_index).view(shape)
    values = v_cache.view(-1, head_dim).index_select(0, flat_index).view(shape)
    return keys.float(), values.float()


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    key_positions: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention of queries [n, Tq, Hkv, G, D] to keys and values [n, Hkv, L, D]; float32 [n, Tq, Hkv, G, D]."""
    num_rows, query_len, num_kv_heads, group, head_dim = queries.shape
    num_keys = keys.shape[2]
    output = torch.empty(num_rows, query_len, num_kv_heads, group, head_dim, device=queries.device)
    max_scores = MAX_GATHERED_ELEMENTS[queries.device.type]
    queries_per_round = max(1, max_scores // (num_rows * num_kv_heads * group * num_keys))
    for first in range(0, query_len, queries_per_round):
        part = queries[:, first : first + queries_per_round].float() * scale
        part_len = part.shape[1]
        offsets = torch.arange(first - query_len, first - query_len + part_len, device=queries.device)
        query_positions = (context_lens.unsqueeze(1) + offsets).unsqueeze(2)  # [n, Tq, 1]
        visible = key_positions.unsqueeze(1) <= query_positions  # [n, Tq, L]
        if window is not None:
            visible &= key_positions.unsqueeze(1) > query_positions - window
        stacked = part.permute(0, 2, 3, 1, 4).reshape(num_rows, num_kv_heads, group * part_len, head_dim)
        scores = torch.matmul(stacked, keys.transpose(2, 3)).view(num_rows, num_kv_heads, group, part_len, num_keys)
        scores.masked_fill_(~visible[:, None, None], -math.inf)
        weights = torch.softmax(scores, dim=-1).view(num_rows, num_kv_heads, group * part_len, num_keys)
        attended = torch.matmul(weights, values).view(num_rows, num_kv_heads, group, part_len, head_dim)
        output[:, first : first + part_len] = attended.permute(0, 3, 1, 2, 4)
    return output

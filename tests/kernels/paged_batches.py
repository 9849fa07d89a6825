"""Paged batches of random keys and values for attention's tests: NaN wherever nobody may look, in whatever blocks and slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from penstock.engine.shared_prefixes import find_shared_chunks
from penstock.kernels import ops, reference_attention
from penstock.kernels.attention_batch import MAX_SHARED_CHUNKS, SHARED_QUERY_ROWS


@dataclass(frozen=True)
class PagedBatch:
    """A batch with its queries and caches; `lengths` are (query length, context length) per row, context 0 is padding."""

    lengths: list[tuple[int, int]]
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    batch: ops.AttentionBatch
    window: int | None
    scale: float

    def rows_of_tokens(self) -> Tensor:
        """[T]: the row each token belongs to."""
        return torch.repeat_interleave(torch.tensor([query_len for query_len, _ in self.lengths]))

    def expected(self) -> Tensor:
        """The twin's answer in float32."""
        args = (self.q.float(), self.k_cache.float(), self.v_cache.float(), self.batch, self.scale, self.window)
        return reference_attention.paged_attention(*args)

    def with_rows(self, rows: Sequence[int]) -> PagedBatch:
        """The same requests, these rows of them and in this order."""
        tokens = [torch.nonzero(self.rows_of_tokens() == row).view(-1) for row in rows]
        batch = make_batch(
            [self.lengths[row] for row in rows],
            self.batch.block_table,
            self.batch.row_slots[torch.tensor(rows, device=self.q.device)],
            self.q.device,
        )
        return replace(self, lengths=[self.lengths[row] for row in rows], q=self.q[torch.cat(tokens)], batch=batch)


def make_batch(
    lengths: Sequence[tuple[int, int]], block_table: Tensor, row_slots: Tensor, device: torch.device
) -> ops.AttentionBatch:
    query_lens, context_lens = torch.tensor(lengths, dtype=torch.int32).T.contiguous()
    query_start = torch.cat((torch.zeros(1, dtype=torch.int32), query_lens.cumsum(0).int()))
    return ops.AttentionBatch(
        block_table=block_table,
        row_slots=row_slots,
        query_start=query_start.to(device),
        context_lens=context_lens.to(device),
        kv_slots=torch.zeros(int(query_lens.sum()), dtype=torch.int64, device=device),
        max_query_len=int(query_lens.max()),
        max_context_len=int(context_lens.max()),
    )


def make_paged_batch(
    lengths: list[tuple[int, int]],
    *,
    heads: tuple[int, int] = (8, 2),
    head_dim: int = 64,
    block_size: int = 16,
    window: int | None = None,
    dtype: torch.dtype = torch.float16,
    device: str = "cpu",
    prefixes: Sequence[tuple[list[int], int]] = (),
) -> PagedBatch:
    """`prefixes`: (rows, tokens): these rows read their first tokens (whole blocks) from the same physical blocks."""
    num_slots = len(lengths) + 3
    lengths_in_blocks = [-(-context // block_size) for _, context in lengths]
    num_blocks = sum(lengths_in_blocks) + 8
    table = torch.full((num_slots, max(lengths_in_blocks) + 2), num_blocks - 1)
    row_slots = torch.randperm(num_slots)[: len(lengths)]
    block_ids = iter(torch.split(torch.randperm(num_blocks - 1), [*lengths_in_blocks, 7]))
    for slot, length in zip(row_slots, lengths_in_blocks, strict=True):
        table[slot, :length] = next(block_ids)
    for rows, num_tokens in prefixes:
        table[row_slots[rows], : num_tokens // block_size] = table[row_slots[rows[0]], : num_tokens // block_size]
    is_read = torch.zeros(num_blocks, block_size, dtype=torch.bool)
    for slot, (query_len, context_len) in zip(row_slots, lengths, strict=True):
        first = 0 if window is None else max(0, context_len - query_len - window + 1)
        positions = torch.arange(first, context_len)
        is_read[table[slot, positions // block_size], positions % block_size] = True
    caches = []
    for _ in range(2):
        random = torch.randn(num_blocks, heads[1], block_size, head_dim, device=device).to(dtype)
        caches.append(torch.where(is_read.to(device)[:, None, :, None], random, torch.nan))
    paddings = torch.tensor([context_len == 0 for _, context_len in lengths])
    where = torch.device(device)
    batch = make_batch(lengths, table.int().to(where), torch.where(paddings, 2**30, row_slots).int().to(where), where)
    q = torch.randn(int(batch.query_start[-1]), heads[0], head_dim, device=device).to(dtype)
    return PagedBatch(lengths, q, caches[0], caches[1], batch, window, head_dim**-0.5)


def share(paged: PagedBatch) -> PagedBatch:
    """The same batch with what its decodes share laid out."""
    table, slots = paged.batch.block_table.cpu().numpy(), paged.batch.row_slots.tolist()
    (_, num_kv_heads, block_size, _), num_heads = paged.k_cache.shape, paged.q.shape[1]
    found = find_shared_chunks(
        [
            table[slot, : (context - 1) // block_size] if query_len == 1 and context > 0 else np.array([], np.int32)
            for slot, (query_len, context) in zip(slots, paged.lengths, strict=True)
        ],
        block_size=block_size,
        members_per_item=SHARED_QUERY_ROWS // (num_heads // num_kv_heads),
        max_chunks=MAX_SHARED_CHUNKS,
    )
    assert found is not None
    padded_items = np.concatenate((found.items, np.array([[2**30, 0, 2**30, 2**30, 2**30]], np.int32)))
    shared = ops.SharedChunks(
        members=torch.from_numpy(found.members).to(paged.q.device),
        items=torch.from_numpy(padded_items).to(paged.q.device),
        shared_lens=torch.from_numpy(found.shared_lens).to(paged.q.device),
        num_chunks=torch.from_numpy(found.num_chunks).to(paged.q.device),
    )
    return replace(paged, batch=replace(paged.batch, shared=shared))

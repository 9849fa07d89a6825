"""Which decodes of a batch read the same blocks, for attention to read these once: found anew only when the rows change."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.attention_batch import MAX_SHARED_CHUNKS, SHARED_QUERY_ROWS, SharedChunks
from .batch import Batch, Limits
from .shared_prefixes import MIN_CHUNK_TOKENS, SharedArrays, find_shared_chunks
from .step_sizes import StepSize

ITEMS_PER_ROW = 4
"""Room for items, per row of the batch; a batch that has more is computed as if nothing were shared."""


class PrefixSharing:
    """The host's copy of the block table of the KV group that sees everything, and what the latest rows share in it."""

    def __init__(self, limits: Limits, group: int, query_heads_per_kv_head: int) -> None:
        """`group` is the KV group's index."""
        self._group, self._block_size = group, limits.block_size
        self._members_per_item = SHARED_QUERY_ROWS // query_heads_per_kv_head
        self._table = np.zeros((limits.num_slots, limits.max_blocks), np.int32)
        self._decode_slots = np.zeros(0, np.int32)
        self._found: SharedArrays | None = None

    def find(self, batch: Batch, num_computed: NDArray[np.int64]) -> SharedArrays | None:
        """What the batch's decodes share, by row of the batch; `num_computed` is by slot, before the step."""
        blocks = batch.new_blocks[self._group]
        self._table[blocks.slots, blocks.columns] = blocks.block_ids
        if not np.array_equal(batch.decode_slots, self._decode_slots):
            self._decode_slots = batch.decode_slots.copy()
            self._found = self._search(num_computed)
        return self._found

    def _search(self, num_computed: NDArray[np.int64]) -> SharedArrays | None:
        slots = self._decode_slots
        lengths = num_computed[slots]
        first_blocks = self._table[slots[lengths >= MIN_CHUNK_TOKENS], 0]
        if len(np.unique(first_blocks)) == len(first_blocks):
            return None
        found = find_shared_chunks(
            [self._table[slot, :num_blocks] for slot, num_blocks in zip(slots, lengths // self._block_size, strict=True)],
            block_size=self._block_size,
            members_per_item=self._members_per_item,
            max_chunks=MAX_SHARED_CHUNKS,
        )
        return None if found is None or len(found.items) > ITEMS_PER_ROW * len(slots) else found


def make_shared_chunks(max_rows: int, device: torch.device) -> SharedChunks:
    """Room for what any batch shares; filled by write_shared_chunks."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    return SharedChunks(
        members=zeros(MAX_SHARED_CHUNKS * max_rows),
        items=zeros(ITEMS_PER_ROW * max_rows, 5),
        shared_lens=zeros(max_rows),
        num_chunks=zeros(max_rows),
    )


def shared_chunks_of(size: StepSize, chunks: SharedChunks) -> SharedChunks:
    """The part that a step of this size reads."""
    num_rows = size.num_rows
    return SharedChunks(
        members=chunks.members[: MAX_SHARED_CHUNKS * num_rows],
        items=chunks.items[: ITEMS_PER_ROW * num_rows],
        shared_lens=chunks.shared_lens[:num_rows],
        num_chunks=chunks.num_chunks[:num_rows],
    )


def pack_shared(found: SharedArrays | None, size: StepSize) -> dict[str, NDArray[np.int32]]:
    """What is found, or nothing, padded to the size; to be uploaded for write_shared_chunks."""
    items = np.zeros((ITEMS_PER_ROW * size.num_rows, 5), np.int32)
    rows = np.zeros((2, size.num_rows), np.int32)
    members = np.zeros(1, np.int32)
    if found is not None:
        items[: len(found.items)] = found.items
        members = found.members
        rows[0, : len(found.shared_lens)], rows[1, : len(found.num_chunks)] = found.shared_lens, found.num_chunks
    return {"shared_members": members, "shared_items": items, "shared_rows": rows}


def write_shared_chunks(chunks: SharedChunks, arrays: dict[str, Tensor]) -> None:
    """Takes over what pack_shared made."""
    members, items, rows = arrays["shared_members"], arrays["shared_items"], arrays["shared_rows"]
    chunks.members[: len(members)] = members
    chunks.items[: len(items)] = items
    chunks.shared_lens[: rows.shape[1]] = rows[0]
    chunks.num_chunks[: rows.shape[1]] = rows[1]

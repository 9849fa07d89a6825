"""Finds the stretches of KV that several rows of a batch read from the same physical blocks.

What it returns is what kernels.attention_batch.SharedChunks has to be filled with, as arrays to upload. It depends on the rows'
leading blocks alone and so holds until a row enters, leaves or moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_CHUNK_TOKENS = 256
"""A chunk is no shorter: what it saves must outweigh its partial results."""


@dataclass(frozen=True, slots=True)
class SharedArrays:
    """Named and shaped as the tensors of SharedChunks; all int32."""

    members: NDArray[np.int32]
    items: NDArray[np.int32]
    shared_lens: NDArray[np.int32]
    num_chunks: NDArray[np.int32]


def find_shared_chunks(
    block_tables: Sequence[NDArray[np.int32]], *, block_size: int, members_per_item: int, max_chunks: int
) -> SharedArrays | None:
    """`block_tables`: per row its blocks in order, without those that the step may still write to; empty for rows that take no
    part (padding, prompts, more than one query token). None where nothing is shared.

    Rows are grouped chunk by chunk: a chunk is shared by those that read all of its blocks alike and shared the one before.
    The chunks' size is MIN_CHUNK_TOKENS, doubled until no row has more than `max_chunks` of them.
    """
    chunk_blocks = max(1, MIN_CHUNK_TOKENS // block_size)
    while True:
        groups = _group(block_tables, chunk_blocks)
        if len(groups) <= max_chunks:
            break
        chunk_blocks *= 2
    if not groups:
        return None
    members: list[int] = []
    items: list[tuple[int, int, int, int, int]] = []
    num_chunks = np.zeros(len(block_tables), np.int32)
    chunk_tokens = chunk_blocks * block_size
    for chunk, groups_of_chunk in enumerate(groups):
        for rows in groups_of_chunk:
            num_chunks[rows] = chunk + 1
            for first in range(0, len(rows), members_per_item):
                part = rows[first : first + members_per_item]
                items.append((len(members), len(part), chunk * chunk_tokens, (chunk + 1) * chunk_tokens, chunk))
                members += part
    return SharedArrays(
        members=np.array(members, np.int32),
        items=np.array(items, np.int32),
        shared_lens=num_chunks * np.int32(chunk_tokens),
        num_chunks=num_chunks,
    )


def _group(block_tables: Sequence[NDArray[np.int32]], chunk_blocks: int) -> list[list[list[int]]]:
    """Per chunk the groups of two and more rows that read it alike, for as many chunks as anybody shares."""
    chunks: list[list[list[int]]] = []
    candidates = [list(range(len(block_tables)))]
    while True:
        first, end = len(chunks) * chunk_blocks, (len(chunks) + 1) * chunk_blocks
        groups: list[list[int]] = []
        for rows in candidates:
            alike: dict[bytes, list[int]] = {}
            for row in rows:
                if len(block_tables[row]) >= end:
                    alike.setdefault(block_tables[row][first:end].tobytes(), []).append(row)
            groups += [same for same in alike.values() if len(same) > 1]
        if not groups:
            return chunks
        chunks.append(groups)
        candidates = groups

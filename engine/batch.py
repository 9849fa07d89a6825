"""The plan of a step as arrays: checked request by request, packed on the host, unpacked on the device.

A request whose share makes no sense is left out and reported; it cannot spoil the batch of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.ops import AttentionBatch
from .plan import ScheduledRequest
from .slots import DeviceSlots, SlotInfo, check_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a runner was built for."""

    num_blocks: int
    block_size: int
    max_blocks: int
    """Columns of a block table."""
    num_groups: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Row:
    """One request of the batch, checked."""

    index: int
    """In the plan's requests."""
    request: ScheduledRequest
    info: SlotInfo
    """With this step's blocks counted."""
    token_ids: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's rows and what the device must get of them."""

    rows: tuple[Row, ...]
    query_start: NDArray[np.int32]
    arrays: dict[str, NDArray[np.generic]]
    max_query_len: int
    max_context_len: int
    host_lengths: NDArray[np.int32]


def check_request(index: int, request: ScheduledRequest, infos: Mapping[int, SlotInfo], limits: Limits) -> Row:
    """Raises ValueError where the request's share contradicts what its slot holds or what the runner was built for."""
    info = infos.get(request.slot)
    if info is None:
        raise ValueError(f"slot {request.slot} holds no request")
    token_ids = None
    num_ids = 1
    if request.token_ids is not None:
        token_ids = np.asarray(request.token_ids, np.int64)
        num_ids = len(token_ids)
        check_token_ids(token_ids, limits.vocab_size)
    if request.num_new_tokens < 1 or request.num_new_tokens != num_ids or request.num_computed_tokens < 0:
        raise ValueError(f"{request.num_new_tokens} tokens are planned and {num_ids} given")
    if any(request.new_block_ids):
        num_added = tuple(len(block_ids) for block_ids in request.new_block_ids)
        info = replace(info, num_blocks=tuple(a + b for a, b in zip(info.num_blocks, num_added, strict=True)))
        if not all(0 <= block_id < limits.num_blocks for block_ids in request.new_block_ids for block_id in block_ids):
            raise ValueError(f"a block id is outside the KV cache of {limits.num_blocks} blocks")
    num_needed = -(-(request.num_computed_tokens + request.num_new_tokens) // limits.block_size)
    if min(info.num_blocks) < num_needed or max(info.num_blocks) > limits.max_blocks:
        raise ValueError(f"{num_needed} KV blocks are needed, the slot has {info.num_blocks} of at most {limits.max_blocks}")
    return Row(index, request, info, token_ids)


def pack(rows: Sequence[Row], limits: Limits) -> Batch:
    """The arrays of a batch; names ending in `_places` are flat indices into a [slot, column] table."""
    requests = [row.request for row in rows]
    slots = np.array([request.slot for request in requests], np.int64)
    starts = np.array([request.num_computed_tokens for request in requests], np.int64)
    lengths = np.array([request.num_new_tokens for request in requests], np.int64)
    query_start = np.concatenate((np.zeros(1, np.int64), lengths.cumsum()))
    num_tokens = int(query_start[-1])
    positions = np.arange(num_tokens) + np.repeat(starts - query_start[:-1], lengths)
    token_ids = np.zeros(num_tokens, np.int64)
    for row, start in zip(rows, query_start[:-1].tolist(), strict=True):
        if row.token_ids is not None:
            token_ids[start : start + len(row.token_ids)] = row.token_ids
    from_device = np.array([row.token_ids is None for row in rows], np.bool_)
    context_lens = (starts + lengths).astype(np.int32)
    arrays: dict[str, NDArray[np.generic]] = {
        "row_slots": slots.astype(np.int32),
        "query_start": query_start.astype(np.int32),
        "context_lens": context_lens,
        "token_ids": token_ids,
        "positions": positions,
        "kv_places": np.repeat(slots * limits.max_blocks, lengths) + positions // limits.block_size,
        "kv_offsets": positions % limits.block_size,
        "device_tokens": query_start[:-1][from_device],
        "device_slots": slots[from_device],
    }
    for group in range(limits.num_groups):
        _pack_blocks(rows, group, limits, arrays)
    return Batch(
        rows=tuple(rows),
        query_start=query_start.astype(np.int32),
        arrays=arrays,
        max_query_len=int(lengths.max()),
        max_context_len=int(context_lens.max()),
        host_lengths=np.stack((lengths.astype(np.int32), context_lens)),
    )


def _pack_blocks(rows: Sequence[Row], group: int, limits: Limits, arrays: dict[str, NDArray[np.generic]]) -> None:
    places: list[int] = []
    block_ids: list[int] = []
    for row in rows:
        added = row.request.new_block_ids[group] if row.request.new_block_ids else ()
        if added:
            end = row.request.slot * limits.max_blocks + row.info.num_blocks[group]
            places += range(end - len(added), end)
            block_ids += added
    if places:
        arrays[f"block_places_{group}"] = np.array(places, np.int64)
        arrays[f"block_ids_{group}"] = np.array(block_ids, np.int32)


def attention_batches(batch: Batch, arrays: dict[str, Tensor], slots: DeviceSlots, limits: Limits) -> list[AttentionBatch]:
    """Writes the step's new blocks into the block tables and says where attention finds what, per KV group."""
    host_lengths = torch.from_numpy(batch.host_lengths)
    batches = []
    for group, table in enumerate(slots.block_tables):
        if f"block_places_{group}" in arrays:
            slots.append_blocks(group, arrays[f"block_places_{group}"], arrays[f"block_ids_{group}"])
        block_of_token = table.view(-1).index_select(0, arrays["kv_places"]).long()
        batches.append(
            AttentionBatch(
                block_table=table,
                row_slots=arrays["row_slots"],
                query_start=arrays["query_start"],
                context_lens=arrays["context_lens"],
                kv_slots=block_of_token * limits.block_size + arrays["kv_offsets"],
                max_query_len=batch.max_query_len,
                max_context_len=batch.max_context_len,
                host_lengths=host_lengths,
            )
        )
    return batches

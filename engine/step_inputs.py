"""Packs what the device must be told before a step into one buffer: a steady decode step needs none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..kernels.step_state import FROM_DEVICE, NO_TOKEN, PARAMETER_NAMES, STARTED_WORDS
from .batch import Batch, Limits
from .plan import NewBlocks, StartedRequest
from .slots import is_greedy
from .step_sizes import StepSize

MAX_TOP_K = 2**31 - 1


def pack_blocks(new_blocks: Sequence[NewBlocks], limits: Limits) -> list[NDArray[np.int32]]:
    """[places, block ids] for kernels.step_state.StepUpdates."""
    places, block_ids = [], []
    num_table_rows = limits.num_slots + 1
    for group, blocks in enumerate(new_blocks):
        if len(blocks.slots):
            rows = blocks.slots.astype(np.int64) + group * num_table_rows
            places.append((rows * limits.max_blocks + blocks.columns).astype(np.int32))
            block_ids.append(blocks.block_ids.astype(np.int32, copy=False))
    return [*places, *block_ids]


def pack_started(started: Sequence[StartedRequest]) -> NDArray[np.int32]:
    """A record of STARTED_WORDS per request."""
    records = np.empty((len(started), STARTED_WORDS), np.int32)
    if not started:
        return records.reshape(-1)
    samplings = [request.sampling for request in started]
    parameters = np.array([[getattr(sampling, name) for name in PARAMETER_NAMES] for sampling in samplings], np.float32)
    parameters[[is_greedy(sampling) for sampling in samplings], PARAMETER_NAMES.index("temperature")] = 0.0
    num_parameters = len(PARAMETER_NAMES)
    records[:, 0] = [request.slot for request in started]
    records[:, 1 : 1 + num_parameters] = parameters.view(np.int32)
    records[:, 1 + num_parameters] = [min(sampling.top_k, MAX_TOP_K) for sampling in samplings]
    seeds = np.array([sampling.seed for sampling in samplings], np.int64)
    records[:, 2 + num_parameters :] = seeds.view(np.int32).reshape(-1, 2)
    return records.reshape(-1)


def pack_rows(batch: Batch, size: StepSize, spare_slot: int) -> NDArray[np.int32]:
    """row_slots, query_start, row_starts and row_samples, padded."""
    num_decodes, num_rows = len(batch.decode_slots), batch.num_rows
    row_slots = np.full(size.num_rows, spare_slot, np.int32)
    row_slots[:num_decodes] = batch.decode_slots
    row_starts = np.full(size.num_rows, FROM_DEVICE, np.int32)
    row_samples = np.full(size.num_rows, NO_TOKEN, np.int32)
    query_start = np.full(size.num_rows + 1, batch.num_tokens, np.int32)
    query_start[: num_decodes + 1] = np.arange(num_decodes + 1)
    if batch.chunks:
        chunks = slice(num_decodes, num_rows)
        row_slots[chunks] = [chunk.slot for chunk in batch.chunks]
        row_starts[chunks] = [chunk.num_computed_tokens for chunk in batch.chunks]
        row_samples[chunks] = [NO_TOKEN if chunk.samples_position is None else chunk.samples_position for chunk in batch.chunks]
        query_start[num_decodes + 1 : num_rows + 1] = num_decodes + np.cumsum([len(chunk.token_ids) for chunk in batch.chunks])
    return np.concatenate((row_slots, query_start, row_starts, row_samples))


def empty_rows(size: StepSize, spare_slot: int) -> NDArray[np.int32]:
    """Rows that are all padding."""
    batch = Batch(np.zeros(0, np.int32), (), (), 1, None, {})
    return pack_rows(batch, size, spare_slot)

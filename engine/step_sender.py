"""Sends the device what it must be told before a step, in one copy, and remembers what it knows already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import ops
from ..kernels.step_state import STARTED_WORDS, StepUpdates
from .batch import Batch, Limits
from .plan import StartedRequest
from .prefix_sharing import pack_shared, write_shared_chunks
from .shared_prefixes import SharedArrays
from .staging import upload
from .step_inputs import empty_rows, pack_blocks, pack_rows, pack_started
from .step_program import StepProgram
from .step_sizes import StepSize


class StepSender:
    """Keeps a program's slots and rows up to date."""

    def __init__(self, program: StepProgram, limits: Limits, device: torch.device) -> None:
        self._program, self._limits, self._device = program, limits, device
        self._rows: tuple[StepSize, NDArray[np.int32]] | None = None

    def send(
        self,
        batch: Batch,
        started: Sequence[StartedRequest],
        size: StepSize,
        shared: SharedArrays | None,
        arrays: Mapping[str, NDArray[np.generic]],
    ) -> dict[str, Tensor]:
        """Writes new blocks, started slots, rows and chunks' tokens into the program's tensors, as far as they are news.

        `shared` holds for as long as the rows do; sizes without room for it leave it. Returns `arrays`, which travel along, as
        tensors on the device.
        """
        blocks, records = pack_blocks(batch.new_blocks, self._limits), pack_started(started)
        rows = np.zeros(0, np.int32) if self._has_rows(batch, size) else pack_rows(batch, size, self._limits.num_slots)
        if len(rows) and size.has_shared:
            arrays = {**arrays, **pack_shared(shared, size)}
        token_ids = [chunk.token_ids.astype(np.int32, copy=False) for chunk in batch.chunks]
        words = np.concatenate((*blocks, records, rows, *token_ids))
        if not len(words) and not arrays:
            return {}
        self._rows = None
        tensors = upload({"words": words, **arrays}, self._device)
        if len(words):
            updates = StepUpdates(
                words=tensors["words"],
                num_blocks=sum(map(len, blocks)) // 2,
                num_started=len(records) // STARTED_WORDS,
                num_rows=size.num_rows if len(rows) else 0,
                num_token_ids=sum(map(len, token_ids)),
                first_token=len(batch.decode_slots),
            )
            ops.apply_step_updates(self._program.state, self._program.step, updates)
        if len(rows) and size.has_shared:
            write_shared_chunks(self._program.shared, tensors)
        if batch.num_rows and not batch.chunks:
            self._rows = (size, batch.decode_slots.copy())
        return tensors

    def send_padding(self, size: StepSize) -> None:
        """Turns all rows into padding."""
        self._rows = None
        arrays = {"words": empty_rows(size, self._limits.num_slots), **pack_shared(None, size)}
        tensors = upload(arrays, self._device)
        write_shared_chunks(self._program.shared, tensors)
        words = tensors["words"]
        updates = StepUpdates(words=words, num_blocks=0, num_started=0, num_rows=size.num_rows, num_token_ids=0, first_token=0)
        ops.apply_step_updates(self._program.state, self._program.step, updates)

    def forget(self) -> None:
        """What the last step was to send may not have arrived."""
        self._rows = None

    def _has_rows(self, batch: Batch, size: StepSize) -> bool:
        """Whether the device knows the rows already, or there are none."""
        if not batch.num_rows:
            return True
        if batch.chunks or self._rows is None or self._rows[0] != size:
            return False
        return np.array_equal(self._rows[1], batch.decode_slots)

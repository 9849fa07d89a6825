"""A step in the making: requests enter it, may be dropped again, and in the end it becomes a plan."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decoding import DecodeRows
from .kv_blocks import NewBlockIds
from .plan import NewBlocks, ScheduledChunk, StartedRequest, StepPlan
from .request import Request


@dataclass(frozen=True, slots=True)
class Share:
    """One request's chunk in a launched step. Results find their request through it, whoever owns the slot by then."""

    request: Request
    num_preemptions: int
    """The request's count when the step was planned: another count by now means that what the step computed is lost."""
    num_computed_tokens: int
    """What is computed once the step is done."""
    samples: bool
    """The step yields output for the request."""


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A plan, and whose its rows are."""

    plan: StepPlan
    decodes: DecodeRows
    chunks: tuple[Share, ...]
    launched_s: float
    reaches_max: bool
    """Some decodes may reach their max_num_tokens."""


class BlockEntries:
    """New entries of one KV group's block tables."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int32]] = []
        """[3, entries] each: slots, columns, block ids."""

    def add(self, slots: int | NDArray[np.int64], columns: Sequence[int] | NDArray[np.int32], block_ids: Sequence[int]) -> None:
        """Entries of one slot, or of as many slots as blocks."""
        part = np.empty((3, len(block_ids)), np.int32)
        part[0], part[1], part[2] = slots, columns, block_ids
        self._parts.append(part)

    def drop(self, slot: int) -> None:
        """Takes a slot's entries out again."""
        self._parts = [part[:, part[0] != slot] for part in self._parts]

    def finish(self) -> NewBlocks:
        """As arrays."""
        if not self._parts:
            return _NO_BLOCKS
        slots, columns, block_ids = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts, axis=1)
        return NewBlocks(slots=slots, columns=columns, block_ids=block_ids)


_NOTHING = np.zeros(0, np.int32)
_NO_BLOCKS = NewBlocks(slots=_NOTHING, columns=_NOTHING, block_ids=_NOTHING)


class StepDraft:
    """Collects what one step computes: `decodes` first, then chunks of up to `budget` tokens."""

    def __init__(self, decodes: DecodeRows, budget: int, num_groups: int) -> None:
        self.decodes = decodes
        self.num_decode_steps = 1
        self.budget = budget
        """Tokens the step can still take."""
        self.has_preempted = False
        self.entries = [BlockEntries() for _ in range(num_groups)]
        self._started: list[StartedRequest] = []
        self._chunks: list[ScheduledChunk] = []
        self._shares: list[Share] = []

    def limit(self, num_tokens: int) -> None:
        """No more than so many tokens from here on."""
        self.budget = min(self.budget, num_tokens)

    @property
    def is_empty(self) -> bool:
        """Nothing is to be computed."""
        return not self._chunks and not len(self.decodes)

    @property
    def chunks(self) -> Sequence[Share]:
        """In the order of the plan."""
        return self._shares

    def add_blocks(self, request: Request, new_block_ids: NewBlockIds) -> None:
        """Blocks that were appended to a request's rows."""
        assert request.blocks is not None
        assert request.slot is not None
        num_new = len(new_block_ids[0])
        if num_new:
            end = len(request.blocks.rows[0])
            for entries, block_ids in zip(self.entries, new_block_ids, strict=True):
                entries.add(request.slot, range(end - num_new, end), block_ids)

    def start(self, request: Request) -> None:
        """A request has just got its slot; its rows begin with the blocks taken over from the prefix cache."""
        assert request.blocks is not None
        assert request.slot is not None
        for entries, row in zip(self.entries, request.blocks.rows, strict=True):
            if not row:
                continue
            columns = [column for column, block_id in enumerate(row) if block_id is not None]
            entries.add(request.slot, columns, [block_id for block_id in row if block_id is not None])
        num_prompt_tokens = request.num_prompt_tokens
        self._started.append(
            StartedRequest(
                slot=request.slot,
                sampling=request.sampling,
                prompt_token_ids=request.token_ids[:num_prompt_tokens],
                output_token_ids=request.token_ids[num_prompt_tokens:],
            )
        )

    def add_chunk(self, request: Request, num_new_tokens: int) -> None:
        """Adds the next `num_new_tokens` positions of a request. The last known position samples."""
        assert request.slot is not None, "a running request has a slot"
        start = request.num_computed_tokens
        end = start + num_new_tokens
        samples = end == len(request.token_ids) and not request.only_scores
        self._chunks.append(
            ScheduledChunk(
                slot=request.slot,
                num_computed_tokens=start,
                token_ids=_int32s(request.token_ids[start:end]),
                samples_position=end - request.num_prompt_tokens if samples else None,
            )
        )
        self._shares.append(Share(request, request.num_preemptions, end, samples))
        self.budget -= num_new_tokens

    def drop(self, request: Request) -> None:
        """A request that is preempted: its blocks go. Of those in the draft, only decodes can be newer than who comes next."""
        assert request.slot is not None, "a running request has a slot"
        self.has_preempted = True
        for entries in self.entries:
            entries.drop(request.slot)

    def finish(self, launched_s: float, reaches_max: bool) -> LaunchedStep:
        """The plan."""
        plan = StepPlan(
            started=tuple(self._started),
            decode_slots=self.decodes.plan_slots,
            chunks=tuple(self._chunks),
            new_blocks=tuple(entries.finish() for entries in self.entries),
            num_decode_steps=self.num_decode_steps,
        )
        return LaunchedStep(plan, self.decodes, tuple(self._shares), launched_s, reaches_max)


def _int32s(token_ids: array[int]) -> NDArray[np.int32]:
    """Over the memory of a slice nobody else has."""
    return np.frombuffer(token_ids, np.int32)

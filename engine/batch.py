"""Checks a plan: what makes no sense fails the request it concerns, before the device hears of it; the others are computed.

Nothing here looks at decodes one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .plan import NewBlocks, ScheduledChunk, StepPlan
from .slots import HostSlots, check_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a runner was built for."""

    num_blocks: int
    block_size: int
    max_blocks: int
    """Columns of a block table."""
    num_groups: int
    num_slots: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a plan that can be computed: decodes, then chunks."""

    decode_slots: NDArray[np.int32]
    chunks: tuple[ScheduledChunk, ...]
    new_blocks: tuple[NewBlocks, ...]
    num_steps: int
    indices: NDArray[np.int64] | None
    """Each row's row in the plan; None where the plan's rows are all here."""
    errors: dict[int, str]
    """By row of the plan: the others, and what is wrong with them."""

    @property
    def num_rows(self) -> int:
        return len(self.decode_slots) + len(self.chunks)

    @property
    def num_tokens(self) -> int:
        return len(self.decode_slots) + sum(len(chunk.token_ids) for chunk in self.chunks)

    def index(self, row: int) -> int:
        """The row in the plan."""
        return row if self.indices is None else int(self.indices[row])


def check_plan(plan: StepPlan, slots: HostSlots, failures: dict[int, str], limits: Limits) -> Batch:
    """Notes the plan's new blocks in `slots` and sorts out its rows; `failures` are slots whose requests cannot run."""
    failures = dict(failures)
    new_blocks = tuple(_checked_blocks(group, blocks, slots, failures, limits) for group, blocks in enumerate(plan.new_blocks))
    decode_slots = plan.decode_slots
    errors: dict[int, str] = {}
    is_good = _good_decodes(decode_slots, plan.num_decode_steps, slots, limits)
    if failures:
        is_good &= ~np.isin(decode_slots, list(failures))
    kept_decodes = decode_slots if is_good.all() else decode_slots[is_good]
    if len(kept_decodes) < len(decode_slots):
        for row in np.flatnonzero(~is_good).tolist():
            errors[row] = failures.get(int(decode_slots[row]), "its slot holds no request or too few KV blocks")
    chunks = []
    for row, chunk in enumerate(plan.chunks, len(decode_slots)):
        try:
            _check_chunk(chunk, slots, failures, limits)
            chunks.append(chunk)
        except (ValueError, TypeError, OverflowError) as error:
            errors[row] = str(error)
    indices = None
    if errors:
        indices = np.setdiff1d(np.arange(plan.num_rows), list(errors))
    return Batch(kept_decodes, tuple(chunks), new_blocks, plan.num_decode_steps, indices, errors)


def _checked_blocks(group: int, blocks: NewBlocks, slots: HostSlots, failures: dict[int, str], limits: Limits) -> NewBlocks:
    """The entries that can be written, noted in `slots`; the slots of others are added to `failures`."""
    if not len(blocks.slots):
        return blocks
    is_good = (blocks.block_ids >= 0) & (blocks.block_ids < limits.num_blocks)
    is_good &= (blocks.columns >= 0) & (blocks.columns < limits.max_blocks)
    in_range = (blocks.slots >= 0) & (blocks.slots < limits.num_slots)
    if not (is_good & in_range).all():
        message = f"a block is outside the KV cache of {limits.num_blocks} blocks or of a table of {limits.max_blocks} columns"
        failures.update(dict.fromkeys(blocks.slots[~is_good].tolist(), message))
        keep = is_good & in_range
        blocks = NewBlocks(slots=blocks.slots[keep], columns=blocks.columns[keep], block_ids=blocks.block_ids[keep])
    slots.add_blocks(group, blocks.slots, blocks.columns)
    return blocks


def _good_decodes(decode_slots: NDArray[np.int32], num_steps: int, slots: HostSlots, limits: Limits) -> NDArray[np.bool_]:
    """Whether each slot has blocks for so many more tokens; slots without a request have none."""
    if not len(decode_slots):
        return np.zeros(0, np.bool_)
    in_range = (decode_slots >= 0) & (decode_slots < limits.num_slots)
    known = decode_slots if in_range.all() else np.where(in_range, decode_slots, 0)
    num_tokens = slots.num_computed[known] + num_steps
    is_good: NDArray[np.bool_] = in_range & (slots.num_columns[:, known].min(0) * limits.block_size >= num_tokens)
    return is_good


def _check_chunk(chunk: ScheduledChunk, slots: HostSlots, failures: dict[int, str], limits: Limits) -> None:
    """Raises ValueError where the chunk contradicts what its slot holds or what the runner was built for."""
    if chunk.slot in failures:
        raise ValueError(failures[chunk.slot])
    if chunk.slot not in slots.infos:
        raise ValueError(f"slot {chunk.slot} holds no request")
    if len(chunk.token_ids) < 1 or chunk.num_computed_tokens < 0:
        raise ValueError(f"{len(chunk.token_ids)} tokens are planned from position {chunk.num_computed_tokens} on")
    check_token_ids(chunk.token_ids, limits.vocab_size)
    num_needed = -(-(chunk.num_computed_tokens + len(chunk.token_ids)) // limits.block_size)
    num_columns = int(slots.num_columns[:, chunk.slot].min())
    if num_columns < num_needed:
        raise ValueError(f"{num_needed} KV blocks are needed, the slot has {num_columns}")

"""Reads plans as a device does, row by row: what each row computes where, for tests that spell plans out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from penstock.engine.plan import NO_TOKEN, StepPlan


@dataclass(frozen=True)
class RowRead:
    """A row of the batch, with what only the device knows filled in."""

    slot: int
    num_computed_tokens: int
    num_new_tokens: int
    token_ids: list[int] | None
    """None: the token the device sampled last."""
    new_block_ids: tuple[tuple[int, ...], ...]
    """Per KV group, in the order of the columns."""
    samples_position: int | None


@dataclass
class PlanReader:
    """Counts each slot's computed tokens on from plan to plan."""

    num_computed: dict[int, int] = field(default_factory=dict)
    num_prompt_tokens: dict[int, int] = field(default_factory=dict)

    def read(self, plan: StepPlan) -> list[RowRead]:
        for started in plan.started:
            self.num_prompt_tokens[started.slot] = len(started.prompt_token_ids)
        rows = []
        for slot in plan.decode_slots.tolist():
            start = self.num_computed[slot]
            position = start + 1 - self.num_prompt_tokens[slot]
            rows.append(RowRead(slot, start, 1, None, _new_block_ids(plan, slot), position))
            self.num_computed[slot] = start + plan.num_decode_steps
        for chunk in plan.chunks:
            start, num_new = chunk.num_computed_tokens, len(chunk.token_ids)
            blocks = _new_block_ids(plan, chunk.slot)
            rows.append(RowRead(chunk.slot, start, num_new, chunk.token_ids.tolist(), blocks, chunk.samples_position))
            self.num_computed[chunk.slot] = start + num_new
        return rows


def _new_block_ids(plan: StepPlan, slot: int) -> tuple[tuple[int, ...], ...]:
    ids = []
    for new in plan.new_blocks:
        mine = new.slots == slot
        columns = new.columns[mine].tolist()
        assert columns == sorted(set(columns)), "columns come in order, each once"
        ids.append(tuple(new.block_ids[mine].tolist()))
    return tuple(ids)


def sampled_everywhere(plan: StepPlan, token_id: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """The token_ids of a StepResult in which every row that samples got `token_id`."""
    token_ids = np.full((plan.num_decode_steps, plan.num_rows), token_id, np.int32)
    for row, chunk in enumerate(plan.chunks, len(plan.decode_slots)):
        if chunk.samples_position is None:
            token_ids[:, row] = NO_TOKEN
    return token_ids

"""The truthful toy: a runner without arithmetic that shows every mistake of the bookkeeping around it.

Its KV store holds token ids (marked with their KV group), and the next token is a hash of the prefix *read through the block
table*. A wrong block, a stale slot, a mixed-up stream or a token that was not waited for changes what it says, and
`expected_tokens` says what it should have been. Steps run late, when they are waited for, in the order of their launch: a
plan that was changed after the launch shows too.
"""

from __future__ import annotations

import dataclasses
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ipc.messages import Sampling
from .plan import NO_TOKEN, PositionLogprobs, ScheduledChunk, StepPlan, StepResult
from .toy_config import ToyConfig, banned_at, expected_tokens, kv_entry, next_token, ranked_logprob

__all__ = ["ToyConfig", "ToyFault", "ToyRunner", "expected_tokens"]

_NEVER_WRITTEN = 0x7FFFFFFF


class ToyFault(Exception):
    """The plan contradicts the state on the device."""


@dataclass(slots=True)
class _Slot:
    """What the device keeps of a request."""

    sampling: Sampling
    prompt_token_ids: Sequence[int]
    rows: list[dict[int, int]]
    """Per KV group: column -> block id."""
    num_tokens: int | None = None
    """Positions in KV; None until the first step."""
    last_token_id: int | None = None
    """None unless the last step sampled one."""


class _ToyStep:
    """A launched step; runs when it, or one launched after it, is waited for."""

    def __init__(self, runner: ToyRunner, plan: StepPlan, ready_s: float) -> None:
        self.plan = plan
        self.ready_s = ready_s
        self.outcome: StepResult | Exception | None = None
        self._runner = runner

    def wait(self) -> StepResult:
        self._runner.run_until(self)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        assert self.outcome is not None, "the step has run"
        return self.outcome


@dataclass(frozen=True, slots=True)
class _Row:
    """A request's part in a batch."""

    slot: _Slot
    start: int
    token_ids: list[int]
    samples_position: int | None


class ToyRunner:
    """Implements engine.plan.Runner over a store of token ids."""

    def __init__(
        self,
        config: ToyConfig,
        *,
        num_blocks: int,
        block_size: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._block_size = block_size
        self._store = [array("i", [_NEVER_WRITTEN]) * block_size for _ in range(num_blocks)]
        self._slots: dict[int, _Slot] = {}
        self._queue: deque[_ToyStep] = deque()
        self._device_free_s = 0.0
        self._clock = clock
        self._sleep = sleep

    def launch(self, plan: StepPlan) -> _ToyStep:
        """Queues a step on the pretended device."""
        duration_s = plan.num_decode_steps * self._config.step_time_s
        self._device_free_s = max(self._device_free_s, self._clock()) + duration_s
        step = _ToyStep(self, plan, self._device_free_s)
        self._queue.append(step)
        return step

    def on_idle(self) -> bool:
        """There is nothing to prepare."""
        return False

    def run_until(self, step: _ToyStep) -> None:
        """Runs the queue up to `step`, which takes the time it takes."""
        while step.outcome is None:
            head = self._queue.popleft()
            try:
                head.outcome = self._run(head.plan)
            except ToyFault as fault:
                head.outcome = fault
        if self._config.step_time_s:
            self._sleep(max(0.0, step.ready_s - self._clock()))

    def _run(self, plan: StepPlan) -> StepResult:
        check_plan(plan, len(self._config.windows), len(self._store))
        for started in plan.started:
            self._slots[started.slot] = _Slot(started.sampling, started.prompt_token_ids, [{} for _ in self._config.windows])
        for group, new in enumerate(plan.new_blocks):
            for number, column, block_id in zip(new.slots.tolist(), new.columns.tolist(), new.block_ids.tolist(), strict=True):
                row = self._slot(number).rows[group]
                if column in row:
                    raise ToyFault(f"slot {number} has a block in column {column} already")
                row[column] = block_id
        steps = [self._run_batch(plan) for _ in range(plan.num_decode_steps)]
        return dataclasses.replace(steps[-1], token_ids=np.concatenate([step.token_ids for step in steps]))

    def _run_batch(self, plan: StepPlan) -> StepResult:
        rows = [self._decode(number, plan.num_decode_steps) for number in plan.decode_slots.tolist()]
        rows += [self._chunk(chunk) for chunk in plan.chunks]
        for row in rows:
            self._write(row)
        result = StepResult(token_ids=np.full((1, len(rows)), NO_TOKEN, np.int32))
        for index, row in enumerate(rows):
            self._read(index, row, result)
        return result

    def _slot(self, number: int) -> _Slot:
        if number not in self._slots:
            raise ToyFault(f"slot {number} was never started")
        return self._slots[number]

    def _decode(self, number: int, num_decode_steps: int) -> _Row:
        slot = self._slot(number)
        if slot.last_token_id is None or slot.num_tokens is None:
            raise ToyFault(f"slot {number} has sampled no token")
        position = slot.num_tokens + 1 - len(slot.prompt_token_ids)
        if num_decode_steps > 1 and (slot.sampling.logprobs is not None or position < slot.sampling.min_tokens):
            raise ToyFault(f"slot {number} cannot run ahead")
        return _Row(slot, slot.num_tokens, [slot.last_token_id], position)

    def _chunk(self, chunk: ScheduledChunk) -> _Row:
        slot, start = self._slot(chunk.slot), chunk.num_computed_tokens
        if slot.num_tokens is not None and slot.num_tokens != start:
            raise ToyFault(f"slot {chunk.slot} holds {slot.num_tokens} tokens, the plan says {start}")
        if slot.last_token_id is not None:
            raise ToyFault(f"slot {chunk.slot} has sampled a token, the plan gives others")
        position = start + len(chunk.token_ids) - len(slot.prompt_token_ids)
        if chunk.samples_position not in (None, position):
            raise ToyFault(f"slot {chunk.slot} samples output {position}, the plan says {chunk.samples_position}")
        return _Row(slot, start, chunk.token_ids.tolist(), chunk.samples_position)

    def _write(self, row: _Row) -> None:
        for group, blocks in enumerate(row.slot.rows):
            for position, token_id in enumerate(row.token_ids, row.start):
                block = self._block(blocks, position // self._block_size)
                block[position % self._block_size] = kv_entry(token_id, group)
        row.slot.num_tokens = row.start + len(row.token_ids)
        row.slot.last_token_id = None

    def _block(self, blocks: dict[int, int], column: int) -> array[int]:
        if column not in blocks:
            raise ToyFault(f"there is no block in column {column}")
        return self._store[blocks[column]]

    def _read(self, index: int, row: _Row, result: StepResult) -> None:
        slot, end = row.slot, row.start + len(row.token_ids)
        if slot.sampling.prompt_logprobs is not None:
            result.prompt_logprobs[index] = self._prompt_logprobs(slot, row.start, end)
        if row.samples_position is None:
            return
        banned = banned_at(row.samples_position, slot.sampling, self._config)
        visible = self._visible(slot, end)
        slot.last_token_id = next_token(visible, self._config, banned.__contains__)
        result.token_ids[0, index] = slot.last_token_id
        if slot.sampling.logprobs is not None:
            likeliest = next_token(visible, self._config, lambda _: False)
            result.logprobs[index] = self._rank([(slot.last_token_id, likeliest)], slot.sampling.logprobs)

    def _visible(self, slot: _Slot, num_tokens: int) -> list[bytes]:
        """Per KV group the ids a query at the last of `num_tokens` positions sees, read through its block table."""
        visible = []
        for window, blocks in zip(self._config.windows, slot.rows, strict=True):
            first = 0 if window is None else max(0, num_tokens - window)
            first_block = first // self._block_size
            last_block = (num_tokens - 1) // self._block_size
            data = b"".join([self._block(blocks, column).tobytes() for column in range(first_block, last_block + 1)])
            offset = 4 * (first - first_block * self._block_size)
            visible.append(data[offset : offset + 4 * (num_tokens - first)])
        return visible

    def _prompt_logprobs(self, slot: _Slot, start: int, end: int) -> PositionLogprobs:
        """Of the prompt tokens that follow positions [start, end)."""
        assert slot.sampling.prompt_logprobs is not None, "asked for"
        pairs = []
        for position in range(start, min(end, len(slot.prompt_token_ids) - 1)):
            likeliest = next_token(self._visible(slot, position + 1), self._config, lambda _: False)
            pairs.append((slot.prompt_token_ids[position + 1], likeliest))
        return self._rank(pairs, slot.sampling.prompt_logprobs)

    def _rank(self, pairs: list[tuple[int, int]], num_top: int) -> PositionLogprobs:
        """Rows for (token, likeliest token) pairs."""
        token_ids, logprobs, ranks = [], [], []
        for token_id, likeliest in pairs:
            columns = [token_id, *((likeliest + i) % self._config.vocab_size for i in range(num_top))]
            token_ids.append(columns)
            logprobs.append([ranked_logprob(column, likeliest, self._config)[1] for column in columns])
            ranks.append(ranked_logprob(token_id, likeliest, self._config)[0])
        return PositionLogprobs(token_ids=token_ids, logprobs=logprobs, ranks=ranks)


def check_plan(plan: StepPlan, num_groups: int, num_blocks: int) -> None:
    """Raises ToyFault for a plan that contradicts itself or the contract, whatever the device holds."""
    slots = [*plan.decode_slots.tolist(), *(chunk.slot for chunk in plan.chunks)]
    if len(set(slots)) != len(slots):
        raise ToyFault(f"a slot is in two rows: {slots}")
    if len({started.slot for started in plan.started}) != len(plan.started):
        raise ToyFault("a slot is started twice")
    if plan.num_decode_steps < 1 or (plan.num_decode_steps > 1 and (plan.started or plan.chunks)):
        raise ToyFault(f"{plan.num_decode_steps} steps of more than decodes")
    if any(not len(chunk.token_ids) for chunk in plan.chunks):
        raise ToyFault("an empty chunk")
    arrays = [plan.decode_slots, *(chunk.token_ids for chunk in plan.chunks)]
    for new in plan.new_blocks:
        arrays += (new.slots, new.columns, new.block_ids)
        if not set(new.slots.tolist()) <= set(slots):
            raise ToyFault("blocks for slots that compute nothing")
        if any(not 0 <= block_id < num_blocks for block_id in new.block_ids.tolist()):
            raise ToyFault("a block that does not exist")
    if any(values.dtype != np.int32 for values in arrays) or len(plan.new_blocks) != num_groups:
        raise ToyFault("an array of another type, or block tables of another number of groups")

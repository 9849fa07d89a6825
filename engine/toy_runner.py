"""The truthful toy: a runner without arithmetic that shows every mistake of the bookkeeping around it.

Its KV store holds token ids (marked with their KV group), and the next token is a hash of the prefix *read through the block
table*. A wrong block, a stale slot, a mixed-up stream or a token that was not waited for changes what it says, and
`expected_tokens` says what it should have been. Steps run late, when they are waited for, in the order of their launch: a
plan that was changed after the launch shows too.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..ipc.messages import Sampling
from .plan import PositionLogprobs, ScheduledRequest, StartedRequest, StepPlan, StepResult
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
    rows: list[list[int]]
    num_tokens: int | None = None
    """Positions in KV; None until the first step."""
    last_token_id: int | None = None


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


@dataclass(slots=True)
class _Outcome:
    """A StepResult in the making."""

    token_ids: list[list[int]] = field(default_factory=list)
    logprobs: dict[int, PositionLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, PositionLogprobs] = field(default_factory=dict)


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
        self._device_free_s = max(self._device_free_s, self._clock()) + self._config.step_time_s
        step = _ToyStep(self, plan, self._device_free_s)
        self._queue.append(step)
        return step

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
        for started in plan.started:
            self._start(started)
        for request in plan.requests:
            self._write(request)
        outcome = _Outcome()
        for index, request in enumerate(plan.requests):
            self._read(index, request, outcome)
        return StepResult(token_ids=outcome.token_ids, logprobs=outcome.logprobs, prompt_logprobs=outcome.prompt_logprobs)

    def _start(self, started: StartedRequest) -> None:
        self._slots[started.slot] = _Slot(started.sampling, started.prompt_token_ids, [[] for _ in self._config.windows])

    def _write(self, request: ScheduledRequest) -> None:
        slot = self._slots[request.slot]
        start = request.num_computed_tokens
        if slot.num_tokens is not None and slot.num_tokens != start:
            raise ToyFault(f"slot {request.slot} holds {slot.num_tokens} tokens, the plan says {start}")
        token_ids = [slot.last_token_id] if request.token_ids is None else request.token_ids
        if len(token_ids) != request.num_new_tokens:
            raise ToyFault(f"slot {request.slot}: {len(token_ids)} token ids for {request.num_new_tokens} tokens")
        for group, (row, block_ids) in enumerate(zip(slot.rows, request.new_block_ids, strict=True)):
            row.extend(block_ids)
            for position, token_id in enumerate(token_ids, start):
                if token_id is None:
                    raise ToyFault(f"slot {request.slot} has sampled no token")
                self._store[row[position // self._block_size]][position % self._block_size] = kv_entry(token_id, group)
        slot.num_tokens = start + request.num_new_tokens

    def _read(self, index: int, request: ScheduledRequest, outcome: _Outcome) -> None:
        slot = self._slots[request.slot]
        end = request.num_computed_tokens + request.num_new_tokens
        if slot.sampling.prompt_logprobs is not None:
            outcome.prompt_logprobs[index] = self._prompt_logprobs(slot, request.num_computed_tokens, end)
        if request.samples_position is None:
            outcome.token_ids.append([])
            return
        banned = banned_at(request.samples_position, slot.sampling, self._config)
        visible = self._visible(slot, end)
        slot.last_token_id = next_token(visible, self._config, banned.__contains__)
        outcome.token_ids.append([slot.last_token_id])
        if slot.sampling.logprobs is not None:
            likeliest = next_token(visible, self._config, lambda _: False)
            outcome.logprobs[index] = self._rank([(slot.last_token_id, likeliest)], slot.sampling.logprobs)

    def _visible(self, slot: _Slot, num_tokens: int) -> list[bytes]:
        """Per KV group the ids a query at the last of `num_tokens` positions sees, read through its block table."""
        visible = []
        for window, row in zip(self._config.windows, slot.rows, strict=True):
            first = 0 if window is None else max(0, num_tokens - window)
            first_block = first // self._block_size
            last_block = (num_tokens - 1) // self._block_size
            data = b"".join([self._store[block_id].tobytes() for block_id in row[first_block : last_block + 1]])
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

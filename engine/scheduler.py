"""Decides what each step computes. The one place where a request's state changes, with what it is made of.

There is no prefill phase and no decode phase: a step lets every running request's computed tokens catch up with its tokens,
under a token budget. Requests that lack one token the device has just sampled (decodes) come first, then chunks of longer ones,
then requests from the queue; each time in the order (priority, arrival). When KV blocks run out, the newest running request is
preempted: it loses slot and blocks, returns to the queue and is computed anew. So the oldest request, which fits alone
(checked at the door), always advances.

Overlap. `plan` may be called while earlier steps are still in flight. A request that such a step samples a token for counts
that token as pending: it is scheduled on as a decode, "the token you sampled last", and the host learns it later. A stop is
therefore found one step late; what the late step yields is discarded. Reaching max_tokens is known beforehand and wastes
nothing. While nothing waits and nobody's sampling depends on the position, a plan may run several decode steps; what comes
after a stop among them is discarded too.

Slots and blocks that are given back while a step is in flight may be handed out again in the very next plan: steps run in the
order of their launch on one stream, so a later step's writes come after everything an earlier step reads or writes. Results
cannot go to the wrong request: a step remembers the slots' epochs. Only what a *completed* step computed is offered to the
prefix cache, and only full blocks of ids that the host knows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

from ..ipc.messages import FinishReason, Submit
from .admission import Limits, admit
from .kv_blocks import KVBlocks
from .metrics import EngineMetrics, Gauges
from .outputs import RequestOutput, StepOutputs
from .pacing import FillSteps, OneStep, PromptBudget, RunAhead
from .plan import StepPlan, StepResult
from .planning import StepPlanner
from .request import Request, RequestStatus
from .request_book import RequestBook
from .request_list import RequestList
from .running import Running
from .settling import Settler
from .step_draft import LaunchedStep


class Scheduler:
    """The queue, the running requests and their KV blocks."""

    def __init__(
        self,
        limits: Limits,
        blocks: KVBlocks,
        metrics: EngineMetrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        prompt_budget: PromptBudget | None = None,
        run_ahead: RunAhead | None = None,
    ) -> None:
        """Without `prompt_budget` steps are filled, without `run_ahead` they are single ones."""
        self.limits = limits
        self.blocks = blocks
        self.metrics = metrics
        self._clock = clock
        self._run_ahead = run_ahead or OneStep()
        running = Running(limits.max_num_seqs, limits.max_model_len, limits.vocab_size, limits.eos_token_ids)
        self._book = RequestBook(blocks, running, metrics, clock)
        self._planner = StepPlanner(limits, self._book, prompt_budget or FillSteps(), self._run_ahead)
        self._settler = Settler(self._book, limits.eos_token_ids)
        self._in_flight: deque[LaunchedStep] = deque()
        self._ended: list[RequestOutput] = []
        self._num_arrivals = 0

    @property
    def num_running(self) -> int:
        """Requests that own a slot."""
        return len(self._book.running)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self._book.waiting)

    @property
    def has_work(self) -> bool:
        """Whether anything is left to compute, to wait for or to tell."""
        return bool(self._book.by_key or self._in_flight or self._ended)

    @property
    def gauges(self) -> Gauges:
        """How things stand, for the metrics."""
        pool = self.blocks.pool
        return Gauges(
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_owned_blocks=pool.num_owned,
            block_size=self.blocks.block_size,
        )

    def submit(self, key: Hashable, submit: Submit, handle: int = 0) -> None:
        """Takes a request into the queue; raises Refused. `handle`, an int64, comes with its tokens."""
        assert key not in self._book.by_key, "two requests of one key at once"
        request = admit(
            key, submit, self.limits, self.blocks, handle=handle, arrival=self._num_arrivals, arrival_s=self._clock()
        )
        self._num_arrivals += 1
        self.metrics.num_admitted += 1
        self._book.by_key[key] = request
        self._book.enqueue(request)
        if submit.num_output_tokens:
            reason = request.reason_to_end(request.token_ids[-1], len(request.token_ids), self.limits.eos_token_ids)
            if reason is not None:
                self._ended.append(self._book.end(request, reason))

    def abort(self, key: Hashable) -> None:
        """Ends a request wherever it is; its terminal output comes with the next update. Unknown keys are ignored."""
        request = self._book.by_key.get(key)
        if request is not None:
            self._ended.append(self._book.end(request, FinishReason.ABORT))

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing can be computed at this moment."""
        step = self._planner.plan()
        if step is None:
            return None
        self._in_flight.append(step)
        self.metrics.on_step(step.plan.num_tokens, step.plan.num_decode_steps)
        return step.plan

    def update(self, plan: StepPlan, result: StepResult) -> StepOutputs:
        """Takes in the result of the oldest step in flight; returns what there is to tell."""
        step = self._in_flight.popleft()
        assert step.plan is plan, "steps complete in the order of their launch"
        now_s = self._clock()
        self._run_ahead.note(step, now_s)
        return self._settler.settle(step, result, self._take_ended(), now_s)

    def take_ended(self) -> StepOutputs:
        """The terminal outputs of requests that ended without a step."""
        return StepOutputs(self._take_ended())

    def _take_ended(self) -> list[RequestOutput]:
        ended, self._ended = self._ended, []
        return ended

    def fail_in_flight(self, num_requests: int, error: str) -> StepOutputs:
        """A step raised: all steps in flight are void, and so is the device's state.

        The newest `num_requests` of the first of them fail; everything else that ran is computed anew. Nothing cached is
        trusted: a step launched after the one that raised wrote through block tables that had not been brought up to date.
        """
        book = self._book
        participants = self._participants(self._in_flight[0])
        self._in_flight.clear()
        for request in book.running.newest_first():
            book.preempt(request, is_trusted=False)
        for request in book.owed.values():
            request.num_pending_tokens = 0
        book.owed.clear()
        self.blocks.pool.forget_content()
        outputs = self._take_ended()
        outputs += [book.end(request, FinishReason.ERROR, error) for request in participants.newest_first()[:num_requests]]
        return StepOutputs(outputs)

    def _participants(self, step: LaunchedStep) -> RequestList:
        """Those whom a step was to compute and who are not done."""
        book, rows = self._book, step.decodes
        found: list[Request | None] = [share.request for share in step.chunks]
        for slot, epoch in zip(rows.slots.tolist(), rows.epochs.tolist(), strict=True):
            is_kept = book.slots.epochs[slot] == epoch
            found.append(book.slots.requests[slot] if is_kept else book.owed.get((slot, epoch)))
        participants = RequestList()
        for request in found:
            if request is not None and request.status is not RequestStatus.FINISHED:
                participants.add(request)
        return participants

    def check_integrity(self) -> None:
        """Audits every KV block and slot; raises IntegrityError."""
        self._book.check_integrity()

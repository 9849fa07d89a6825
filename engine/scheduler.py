"""Decides what each step computes. The one place where a request's state changes.

There is no prefill phase and no decode phase: a step lets every running request's `num_computed_tokens` catch up with its
`num_tokens`, under a token budget. Requests that lack one token (decodes) come first, then chunks of longer ones, then
requests from the queue; each time in the order (priority, arrival). When KV blocks run out, the newest running request is
preempted: it loses slot and blocks, returns to the queue and is computed anew. So the oldest request, which fits alone
(checked at the door), always advances.

Overlap. `plan` may be called while earlier steps are still in flight. A request that such a step samples a token for counts
that token as pending: it is scheduled on with `token_ids=None`, "the token you sampled last", and the host learns it later. A
stop is therefore found one step late; what the late step yields is discarded. Reaching max_tokens is known beforehand and
wastes nothing.

Slots and blocks that are given back while a step is in flight may be handed out again in the very next plan: steps run in the
order of their launch on one stream, so a later step's writes come after everything an earlier step reads or writes. Results
cannot go to the wrong request: a step's shares hold the requests themselves, not their slots. Only what a *completed* step
computed is offered to the prefix cache, and only full blocks of ids that the host knows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

from ..ipc.messages import FinishReason, Submit
from .admission import Limits, admit
from .holdings import Holdings
from .kv_blocks import KVBlocks, PrefixHit
from .metrics import EngineMetrics, Gauges
from .outputs import RequestOutput, make_output
from .plan import PositionLogprobs, StepPlan, StepResult
from .request import Request, RequestStatus
from .request_list import RequestList
from .step_draft import LaunchedStep, Share, StepDraft


class Scheduler:
    """The queue, the running requests and their KV blocks."""

    def __init__(
        self, limits: Limits, blocks: KVBlocks, metrics: EngineMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self.metrics = metrics
        self._clock = clock
        self._requests: dict[Hashable, Request] = {}
        self._waiting = RequestList()
        self._running = RequestList()
        self._holdings = Holdings(blocks, limits.max_num_seqs)
        self._in_flight: deque[LaunchedStep] = deque()
        self._ended: list[RequestOutput] = []
        self._num_arrivals = 0

    @property
    def num_running(self) -> int:
        """Requests that own a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether anything is left to compute, to wait for or to tell."""
        return bool(self._requests or self._in_flight or self._ended)

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

    def submit(self, key: Hashable, submit: Submit) -> None:
        """Takes a request into the queue; raises Refused."""
        assert key not in self._requests, "two requests of one key at once"
        request = admit(key, submit, self.limits, self.blocks, arrival=self._num_arrivals, arrival_s=self._clock())
        self._num_arrivals += 1
        self.metrics.num_admitted += 1
        self._requests[key] = request
        self._waiting.add(request)
        reason = request.reason_to_end(self.limits.eos_token_ids) if request.num_output_tokens else None
        if reason is not None:
            self._ended.append(self._end(request, reason))

    def abort(self, key: Hashable) -> None:
        """Ends a request wherever it is; its terminal output comes with the next update. Unknown keys are ignored."""
        request = self._requests.get(key)
        if request is not None:
            self._ended.append(self._end(request, FinishReason.ABORT))

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing can be computed at this moment."""
        draft = StepDraft(self.limits.max_num_batched_tokens)
        self._continue_running(draft)
        if not draft.has_preempted:
            self._start_waiting(draft)
        step = draft.finish()
        if step is None:
            return None
        self._in_flight.append(step)
        self.metrics.on_step(step.plan.num_tokens)
        return step.plan

    def update(self, plan: StepPlan, result: StepResult) -> list[RequestOutput]:
        """Takes in the result of the oldest step in flight; returns what there is to tell."""
        step = self._in_flight.popleft()
        assert step.plan is plan, "steps complete in the order of their launch"
        now_s = self._clock()
        outputs = self.take_ended()
        for index, share in enumerate(step.shares):
            output = self._apply(share, index, result, now_s)
            if output is not None:
                outputs.append(output)
        return outputs

    def take_ended(self) -> list[RequestOutput]:
        """The terminal outputs of requests that ended without a step."""
        ended, self._ended = self._ended, []
        return ended

    def fail_in_flight(self, num_requests: int, error: str) -> list[RequestOutput]:
        """A step raised: all steps in flight are void, and so is the device's state.

        The newest `num_requests` of the first of them fail; everything else that ran is computed anew. Nothing cached is
        trusted: a step launched after the one that raised wrote through block tables that had not been brought up to date.
        """
        participants = RequestList()
        for share in self._in_flight[0].shares:
            if share.request.status is not RequestStatus.FINISHED:
                participants.add(share.request)
        for step in self._in_flight:
            for share in step.shares:
                share.request.num_pending_tokens = 0
        self._in_flight.clear()
        for request in self._running.newest_first():
            self._preempt(request)
        self.blocks.pool.forget_content()
        outputs = self.take_ended()
        outputs += [self._end(request, FinishReason.ERROR, error) for request in participants.newest_first()[:num_requests]]
        return outputs

    def check_integrity(self) -> None:
        """Audits every KV block and slot; raises IntegrityError."""
        self._holdings.check_integrity(self._running)

    def _continue_running(self, draft: StepDraft) -> None:
        decodes = []
        prefills = []
        for request in self._running:
            num_tokens = request.num_tokens_to_compute
            if num_tokens == 1:
                decodes.append(request)
            elif num_tokens:
                prefills.append(request)
        for request in (*decodes, *prefills):
            if draft.budget == 0:
                return
            if request.status is RequestStatus.RUNNING:
                self._continue(request, draft)

    def _continue(self, request: Request, draft: StepDraft) -> None:
        """Schedules a running request, at the expense of newer ones if need be."""
        num_new_tokens = min(request.num_tokens_to_compute, draft.budget)
        while (new_block_ids := self._holdings.grow(request, num_new_tokens)) is None:
            victim = self._running.newest
            draft.drop(victim)
            draft.has_preempted = True
            self._preempt(victim)
            if victim is request:
                return
        draft.add(request, num_new_tokens, new_block_ids)

    def _start_waiting(self, draft: StepDraft) -> None:
        while self._waiting and draft.budget and self._holdings.has_free_slot:
            request = self._waiting.oldest
            if request.num_pending_tokens or not self._start(request, draft):
                return

    def _start(self, request: Request, draft: StepDraft) -> bool:
        """Gives the head of the queue a slot and blocks; False when there are too few for its tokens."""
        hit = self._holdings.take(request)
        if hit is None:
            return False
        self._waiting.remove(request)
        self._running.add(request)
        request.status = RequestStatus.RUNNING
        self._note_start(request, hit)
        num_new_tokens = min(request.num_tokens_to_compute, draft.budget)
        new_block_ids = self._holdings.grow(request, num_new_tokens)
        assert new_block_ids is not None, "room was promised"
        draft.start(request, hit, num_new_tokens, new_block_ids)
        return True

    def _note_start(self, request: Request, hit: PrefixHit) -> None:
        if request.scheduled_s is None:
            request.scheduled_s = self._clock()
            request.num_cached_tokens = min(hit.num_tokens, request.num_prompt_tokens)
            self.metrics.on_started(request, hit.num_tokens if self._holdings.may_reuse(request) else None)

    def _preempt(self, request: Request) -> None:
        """Back to the queue; nothing computed is kept but what the prefix cache has."""
        self._running.remove(request)
        self._holdings.give_back(request)
        request.status = RequestStatus.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.prompt_logprobs.clear()
        self._waiting.add(request)
        self.metrics.num_preemptions += 1

    def _apply(self, share: Share, index: int, result: StepResult, now_s: float) -> RequestOutput | None:
        """One share's outcome; None where there is nothing to tell."""
        request = share.request
        request.num_pending_tokens -= share.samples
        if request.status is RequestStatus.FINISHED:
            return None
        if index in result.errors:
            self._holdings.distrust(request)
            return self._end(request, FinishReason.ERROR, result.errors[index])
        is_kept = request.num_preemptions == share.num_preemptions
        if is_kept:
            self._holdings.register(request, share.num_computed_tokens)
            if request.owes_prompt_logprobs and index in result.prompt_logprobs:
                request.prompt_logprobs.append(result.prompt_logprobs[index])
        elif request.owes_prompt_logprobs:  # lost; the first token comes again together with them
            return None
        if not share.samples:
            is_scored = request.only_scores and is_kept and share.num_computed_tokens == len(request.token_ids)
            return self._end(request, FinishReason.LENGTH) if is_scored else None
        self.metrics.on_token(request, now_s)
        return self._append(request, result.token_ids[index], result.logprobs.get(index))

    def _append(self, request: Request, sampled: list[int], logprobs: PositionLogprobs | None) -> RequestOutput:
        reason = None
        token_ids: list[int] = []
        while reason is None and len(token_ids) < len(sampled):
            token_ids.append(sampled[len(token_ids)])
            request.token_ids.append(token_ids[-1])
            reason = request.reason_to_end(self.limits.eos_token_ids)
        self.metrics.num_generation_tokens += len(token_ids)
        if reason is not None:
            self._release(request, reason)
        return make_output(request, token_ids, logprobs=logprobs, reason=reason)

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> RequestOutput:
        """The terminal event of a request that ends without a further token."""
        self._release(request, reason)
        return make_output(request, [], reason=reason, error=error)

    def _release(self, request: Request, reason: FinishReason) -> None:
        """Gives back what the request owns and forgets it."""
        if request.status is RequestStatus.RUNNING:
            self._running.remove(request)
            self._holdings.give_back(request)
        else:
            self._waiting.remove(request)
        request.status = RequestStatus.FINISHED
        del self._requests[request.key]
        self.metrics.on_finished(request, reason, self._clock())

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
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from ..ipc.messages import FinishReason, Submit
from .admission import Limits, admit
from .errors import Refused
from .kv_blocks import ABSENT_BLOCK_ID, KVBlocks, NewBlockIds, PrefixHit, extend_block_hashes
from .metrics import EngineMetrics, Gauges
from .plan import PositionLogprobs, ScheduledRequest, StartedRequest, StepPlan, StepResult
from .request import Request, RequestOutput, RequestStatus


@dataclass(frozen=True, slots=True)
class _Share:
    """One request's part in a step."""

    request: Request
    scheduled: ScheduledRequest
    num_preemptions: int
    """The request's count when the step was planned: another count by now means that what the step computed is lost."""


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int
    """Tokens the step can still take."""
    started: dict[Request, StartedRequest] = field(default_factory=dict)
    scheduled: dict[Request, ScheduledRequest] = field(default_factory=dict)
    has_preempted: bool = False

    def add(self, request: Request, scheduled: ScheduledRequest) -> None:
        self.scheduled[request] = scheduled
        self.budget -= scheduled.num_new_tokens

    def drop(self, request: Request) -> None:
        scheduled = self.scheduled.pop(request, None)
        if scheduled is not None:
            self.budget += scheduled.num_new_tokens
        self.started.pop(request, None)


@dataclass(frozen=True, slots=True)
class _StepInFlight:
    plan: StepPlan
    shares: tuple[_Share, ...]


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
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._free_slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._in_flight: deque[_StepInFlight] = deque()
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
        try:
            request = admit(key, submit, self.limits, self.blocks, arrival=self._num_arrivals, arrival_s=self._clock())
        except Refused as refusal:
            self.metrics.rejected[refusal.reason] += 1
            raise
        self._num_arrivals += 1
        self.metrics.num_admitted += 1
        self._requests[key] = request
        insort(self._waiting, request, key=_order)
        reason = self._reason_to_end(request) if request.num_output_tokens else None
        if reason is not None:
            self._ended.append(self._end(request, reason, request.num_output_tokens, []))

    def abort(self, key: Hashable) -> None:
        """Ends a request wherever it is; its terminal output comes with the next update. Unknown keys are ignored."""
        request = self._requests.get(key)
        if request is not None:
            num_known_outputs = len(request.token_ids) - request.num_prompt_tokens
            self._ended.append(self._end(request, FinishReason.ABORT, num_known_outputs, []))

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing can be computed at this moment."""
        draft = _Draft(self.limits.max_num_batched_tokens)
        self._continue_running(draft)
        if not draft.has_preempted:
            self._start_waiting(draft)
        if not draft.scheduled:
            return None
        plan = StepPlan(started=tuple(draft.started.values()), requests=tuple(draft.scheduled.values()))
        shares = []
        for request, scheduled in draft.scheduled.items():
            request.num_computed_tokens += scheduled.num_new_tokens
            request.num_pending_tokens += scheduled.samples_position is not None
            shares.append(_Share(request, scheduled, request.num_preemptions))
        self._in_flight.append(_StepInFlight(plan, tuple(shares)))
        self.metrics.on_step(plan.num_tokens)
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[RequestOutput]:
        """Takes in the result of the oldest step in flight; returns what there is to tell."""
        step = self._in_flight.popleft()
        assert step.plan is plan, "steps complete in the order of their launch"
        now_s = self._clock()
        gaps_s: Counter[float] = Counter()
        outputs = self.take_ended()
        for index, share in enumerate(step.shares):
            output = self._apply(share, index, result, now_s, gaps_s)
            if output is not None:
                outputs.append(output)
        self.metrics.on_token_gaps(gaps_s)
        return outputs

    def take_ended(self) -> list[RequestOutput]:
        """The terminal outputs of requests that ended without a step."""
        ended, self._ended = self._ended, []
        return ended

    def fail_in_flight(self, num_requests: int, error: str) -> list[RequestOutput]:
        """A step raised: all steps in flight are void, and so is the device's state.

        The newest `num_requests` of the first of them fail; everything else that ran is computed anew.
        """
        first = self._in_flight[0]
        participants = {share.request for share in first.shares if share.request.status is not RequestStatus.FINISHED}
        for share in (share for step in self._in_flight for share in step.shares):
            share.request.num_pending_tokens = 0
        self._in_flight.clear()
        for request in reversed(self._running.copy()):
            self._preempt(request)
        outputs = self.take_ended()
        for request in sorted(participants, key=_order)[-num_requests:]:
            outputs.append(self._fail(request, error))
        return outputs

    def check_integrity(self) -> None:
        """Audits every KV block and slot; raises IntegrityError."""
        self.blocks.check_integrity()
        slots = sorted([*self._free_slots, *(request.slot for request in self._running if request.slot is not None)])
        assert slots == list(range(self.limits.max_num_seqs)), f"slots are lost or doubled: {slots}"

    def _continue_running(self, draft: _Draft) -> None:
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

    def _continue(self, request: Request, draft: _Draft) -> None:
        """Schedules a running request, at the expense of newer ones if need be."""
        assert request.blocks is not None, "a running request has blocks"
        num_new_tokens = min(request.num_tokens_to_compute, draft.budget)
        start = request.num_computed_tokens
        while (new_block_ids := self.blocks.grow(request.blocks, start, start + num_new_tokens)) is None:
            victim = self._running[-1]
            draft.drop(victim)
            draft.has_preempted = True
            self._preempt(victim)
            if victim is request:
                return
        draft.add(request, _schedule(request, num_new_tokens, new_block_ids))

    def _start_waiting(self, draft: _Draft) -> None:
        while self._waiting and draft.budget and self._free_slots:
            request = self._waiting[0]
            if request.num_pending_tokens or not self._start(request, draft):
                return

    def _start(self, request: Request, draft: _Draft) -> bool:
        """Gives the head of the queue a slot and blocks; False when there are too few for its tokens."""
        hit = self._find_prefix(request)
        if not self.blocks.can_start(request.num_tokens, hit):
            return False
        self._waiting.pop(0)
        insort(self._running, request, key=_order)
        request.status = RequestStatus.RUNNING
        request.slot = self._free_slots.pop()
        request.blocks = self.blocks.open(hit)
        request.num_computed_tokens = hit.num_tokens
        self._note_start(request, hit)
        num_new_tokens = min(request.num_tokens_to_compute, draft.budget)
        grown = self.blocks.grow(request.blocks, hit.num_tokens, hit.num_tokens + num_new_tokens)
        assert grown is not None, "can_start promised room"
        draft.started[request] = StartedRequest(
            slot=request.slot,
            sampling=request.sampling,
            prompt_token_ids=request.token_ids[: request.num_prompt_tokens].tolist(),
            output_token_ids=request.token_ids[request.num_prompt_tokens :].tolist(),
        )
        draft.add(request, _schedule(request, num_new_tokens, _with_hit(hit, grown)))
        return True

    def _find_prefix(self, request: Request) -> PrefixHit:
        """At least one token is left to compute. Who wants prompt logprobs needs the logits of the whole prompt."""
        if not self.blocks.caches_prefixes or request.owes_prompt_logprobs:
            return self.blocks.find_prefix((), 0)
        extend_block_hashes(request.block_hashes, request.token_ids, self.blocks.block_size, request.cache_salt)
        return self.blocks.find_prefix(request.block_hashes, request.num_tokens - 1)

    def _note_start(self, request: Request, hit: PrefixHit) -> None:
        if request.scheduled_s is None:
            request.scheduled_s = self._clock()
            request.num_cached_tokens = min(hit.num_tokens, request.num_prompt_tokens)
            self.metrics.on_started(request, request.scheduled_s)
            if self.blocks.caches_prefixes and not request.owes_prompt_logprobs:
                self.metrics.num_prefix_queries += len(request.token_ids)
                self.metrics.num_prefix_hits += hit.num_tokens

    def _preempt(self, request: Request) -> None:
        """Back to the queue; nothing computed is kept but what the prefix cache has."""
        self._give_back(request)
        request.status = RequestStatus.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.prompt_logprobs.clear()
        insort(self._waiting, request, key=_order)
        self.metrics.num_preemptions += 1

    def _give_back(self, request: Request) -> None:
        assert request.blocks is not None, "a running request has blocks"
        assert request.slot is not None, "a running request has a slot"
        _remove(self._running, request)
        self.blocks.close(request.blocks)
        self._free_slots.append(request.slot)
        request.blocks = None
        request.slot = None

    def _apply(
        self, share: _Share, index: int, result: StepResult, now_s: float, gaps_s: Counter[float]
    ) -> RequestOutput | None:
        """One share's outcome; None where there is nothing to tell."""
        request, scheduled = share.request, share.scheduled
        request.num_pending_tokens -= scheduled.samples_position is not None
        if request.status is RequestStatus.FINISHED:
            return None
        if index in result.errors:
            return self._fail(request, result.errors[index])
        is_kept = request.num_preemptions == share.num_preemptions
        num_computed = scheduled.num_computed_tokens + scheduled.num_new_tokens
        if is_kept:
            self._register(request, num_computed)
            if request.owes_prompt_logprobs and index in result.prompt_logprobs:
                request.prompt_logprobs.append(result.prompt_logprobs[index])
        if scheduled.samples_position is None:
            is_scored = request.only_scores and is_kept and num_computed == len(request.token_ids)
            return self._end(request, FinishReason.LENGTH, 0, []) if is_scored else None
        self._note_token(request, now_s, gaps_s)
        return self._append(request, result.token_ids[index], result.logprobs.get(index))

    def _append(self, request: Request, sampled: list[int], logprobs: PositionLogprobs | None) -> RequestOutput:
        position = len(request.token_ids) - request.num_prompt_tokens
        reason = None
        token_ids: list[int] = []
        while reason is None and len(token_ids) < len(sampled):
            token_id = sampled[len(token_ids)]
            request.token_ids.append(token_id)
            token_ids.append(token_id)
            reason = self._reason_to_end(request)
        self.metrics.num_generation_tokens += len(token_ids)
        if reason is not None:
            return self._end(request, reason, position, token_ids, logprobs)
        return _output(request, position, token_ids, logprobs)

    def _reason_to_end(self, request: Request) -> FinishReason | None:
        """Whether the last known token ends the request."""
        sampling = request.sampling
        token_id = request.token_ids[-1]
        num_output_tokens = len(request.token_ids) - request.num_prompt_tokens
        if num_output_tokens > sampling.min_tokens and (
            token_id in sampling.stop_token_ids or (not sampling.ignore_eos and token_id in self.limits.eos_token_ids)
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(request.token_ids) >= request.max_num_tokens else None

    def _register(self, request: Request, num_computed_tokens: int) -> None:
        table = request.blocks
        num_blocks = num_computed_tokens // self.blocks.block_size
        if table is None or not self.blocks.caches_prefixes or num_blocks <= table.num_registered:
            return
        extend_block_hashes(request.block_hashes, request.token_ids, self.blocks.block_size, request.cache_salt)
        self.blocks.register(table, request.block_hashes, num_blocks)

    def _note_token(self, request: Request, now_s: float, gaps_s: Counter[float]) -> None:
        if request.last_token_s is None:
            self.metrics.on_first_token(now_s - request.arrival_s)
        else:
            gaps_s[now_s - request.last_token_s] += 1
        request.last_token_s = now_s

    def _fail(self, request: Request, error: str) -> RequestOutput:
        num_known_outputs = len(request.token_ids) - request.num_prompt_tokens
        return self._end(request, FinishReason.ERROR, num_known_outputs, [], error=error)

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        position: int,
        token_ids: list[int],
        logprobs: PositionLogprobs | None = None,
        error: str | None = None,
    ) -> RequestOutput:
        """The request's terminal event: gives back what it owns and forgets it."""
        if request.status is RequestStatus.RUNNING:
            self._give_back(request)
        else:
            _remove(self._waiting, request)
        request.status = RequestStatus.FINISHED
        del self._requests[request.key]
        self.metrics.on_finished(request, reason, self._clock())
        return _output(request, position, token_ids, logprobs, reason=reason, error=error)


def _order(request: Request) -> tuple[int, int]:
    return request.order


def _remove(requests: list[Request], request: Request) -> None:
    """Takes a request out of a list sorted by `order`."""
    index = bisect_left(requests, request.order, key=_order)
    assert requests[index] is request, "a request is missing in its list"
    del requests[index]


def _schedule(request: Request, num_new_tokens: int, new_block_ids: NewBlockIds) -> ScheduledRequest:
    start = request.num_computed_tokens
    end = start + num_new_tokens
    samples = end == request.num_tokens and not request.only_scores
    assert request.slot is not None, "a running request has a slot"
    return ScheduledRequest(
        slot=request.slot,
        num_computed_tokens=start,
        num_new_tokens=num_new_tokens,
        token_ids=request.token_ids[start:end].tolist() if end <= len(request.token_ids) else None,
        new_block_ids=new_block_ids,
        samples_position=request.num_output_tokens if samples else None,
    )


def _with_hit(hit: PrefixHit, grown: NewBlockIds) -> NewBlockIds:
    """What a fresh row gets: the blocks taken over from the cache, then the new ones."""
    return tuple(
        (*(ABSENT_BLOCK_ID if block_id is None else block_id for block_id in row), *new)
        for row, new in zip(hit.rows, grown, strict=True)
    )


def _output(
    request: Request,
    position: int,
    token_ids: list[int],
    logprobs: PositionLogprobs | None,
    reason: FinishReason | None = None,
    error: str | None = None,
) -> RequestOutput:
    """What to tell; the first output takes along what goes with it."""
    is_first = not request.has_answered
    prompt_logprobs = _joined(request.prompt_logprobs) if is_first and request.prompt_logprobs else None
    request.has_answered = True
    request.prompt_logprobs.clear()
    return RequestOutput(
        key=request.key,
        position=position,
        token_ids=token_ids,
        finish_reason=reason,
        num_cached_tokens=request.num_cached_tokens if is_first else None,
        stop_token_id=token_ids[-1] if reason is FinishReason.STOP and token_ids else None,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        error=error,
    )


def _joined(parts: list[PositionLogprobs]) -> PositionLogprobs:
    return PositionLogprobs(
        token_ids=[row for part in parts for row in part.token_ids],
        logprobs=[row for part in parts for row in part.logprobs],
        ranks=[rank for part in parts for rank in part.ranks],
    )

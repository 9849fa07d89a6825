"""All requests and their ways between queue, slot and end. The one place where a request's status changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ..ipc.messages import FinishReason
from .holdings import Holdings
from .kv_blocks import KVBlocks
from .metrics import EngineMetrics
from .outputs import RequestOutput, make_output
from .request import Request, RequestStatus
from .request_list import RequestList
from .running import Running


class RequestBook:
    """The queue, the running requests, and what they hold."""

    def __init__(self, blocks: KVBlocks, running: Running, metrics: EngineMetrics, clock: Callable[[], float]) -> None:
        self.blocks = blocks
        self.slots = running
        self.metrics = metrics
        self.clock = clock
        self.by_key: dict[Hashable, Request] = {}
        self.waiting = RequestList()
        self.running = RequestList()
        self.prefilling = RequestList()
        """Those of the running ones with known tokens that no launched step computes."""
        self.num_waiting_tokens = 0
        """Known tokens of the requests in the queue."""
        self.holdings = Holdings(blocks, running)
        self.owed: dict[tuple[int, int], Request] = {}
        """(slot, epoch) -> who was preempted there while steps in flight sampled for it: their tokens are still its own."""

    def enqueue(self, request: Request) -> None:
        """Puts a request into the queue."""
        request.status = RequestStatus.WAITING
        self.waiting.add(request)
        self.num_waiting_tokens += len(request.token_ids)

    def _dequeue(self, request: Request) -> None:
        self.waiting.remove(request)
        self.num_waiting_tokens -= len(request.token_ids)

    def start(self, request: Request) -> bool:
        """Gives a request of the queue a slot and what is cached of its prefix; False when there is too little room."""
        hit = self.holdings.take(request)
        if hit is None:
            return False
        self._dequeue(request)
        self.running.add(request)
        self.prefilling.add(request)
        request.status = RequestStatus.RUNNING
        if request.scheduled_s is None:
            request.scheduled_s = self.clock()
            request.num_cached_tokens = min(hit.num_tokens, request.num_prompt_tokens)
            self.metrics.on_started(request, hit.num_tokens if self.holdings.may_reuse(request) else None)
        return True

    def preempt(self, request: Request, *, is_trusted: bool = True) -> None:
        """Back to the queue; nothing computed is kept but what the prefix cache has, if what was computed can be trusted."""
        slot = request.slot
        assert slot is not None, "a running request has a slot"
        tenancy = (slot, int(self.slots.epochs[slot]))
        self._vacate(request, is_trusted=is_trusted)
        if request.num_pending_tokens:
            self.owed[tenancy] = request
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.prompt_logprobs.clear()
        self.enqueue(request)
        self.metrics.num_preemptions += 1

    def learn(self, request: Request, token_ids: list[int]) -> None:
        """Appends ids the host has learnt to what it knows of a request."""
        if request.slot is not None:
            self.slots.append(request.slot, token_ids)
        else:
            request.token_ids.extend(token_ids)
            self.num_waiting_tokens += len(token_ids)

    def release(self, request: Request, reason: FinishReason) -> None:
        """Gives back what a request owns and forgets it."""
        if request.status is RequestStatus.RUNNING:
            self._vacate(request, is_trusted=reason is not FinishReason.ERROR)
        else:
            self._dequeue(request)
        request.status = RequestStatus.FINISHED
        del self.by_key[request.key]
        self.metrics.on_finished(request, reason, self.clock())

    def end(self, request: Request, reason: FinishReason, error: str | None = None) -> RequestOutput:
        """The terminal event of a request that ends without a further token."""
        self.release(request, reason)
        position = len(request.token_ids) - request.num_prompt_tokens
        return make_output(request, position, [], reason=reason, error=error)

    def _vacate(self, request: Request, *, is_trusted: bool) -> None:
        self.running.remove(request)
        if not self._decodes_or_drains(request):
            self.prefilling.remove(request)
        self.holdings.give_back(request, is_trusted=is_trusted)

    def _decodes_or_drains(self, request: Request) -> bool:
        return request.num_computed_tokens == len(request.token_ids)

    def check_integrity(self) -> None:
        """Audits every KV block and slot; raises IntegrityError."""
        self.holdings.check_integrity(self.running)

"""A step in the making: requests enter it, may be dropped again, and in the end it becomes a plan."""

from __future__ import annotations

from dataclasses import dataclass

from .kv_blocks import ABSENT_BLOCK_ID, NewBlockIds, PrefixHit
from .plan import ScheduledRequest, StartedRequest, StepPlan
from .request import Request


@dataclass(frozen=True, slots=True)
class Share:
    """One request's part in a launched step. Results find their request through it, whoever owns the slot by then."""

    request: Request
    scheduled: ScheduledRequest
    num_preemptions: int
    """The request's count when the step was planned: another count by now means that what the step computed is lost."""

    @property
    def samples(self) -> bool:
        """The step yields output for the request."""
        return self.scheduled.samples_position is not None

    @property
    def num_computed_tokens(self) -> int:
        """What is computed once the step is done."""
        return self.scheduled.num_computed_tokens + self.scheduled.num_new_tokens


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A plan, and whose its `requests` are."""

    plan: StepPlan
    shares: tuple[Share, ...]


class StepDraft:
    """Collects what one step computes, up to `budget` tokens."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        """Tokens the step can still take."""
        self.has_preempted = False
        self._started: dict[Request, StartedRequest] = {}
        self._scheduled: dict[Request, ScheduledRequest] = {}

    def start(self, request: Request, hit: PrefixHit, num_new_tokens: int, new_block_ids: NewBlockIds) -> None:
        """Adds a request that has just got its slot; its row begins with the blocks taken over from the prefix cache."""
        row_starts = tuple(
            (*(ABSENT_BLOCK_ID if block_id is None else block_id for block_id in row), *new)
            for row, new in zip(hit.rows, new_block_ids, strict=True)
        )
        self.add(request, num_new_tokens, row_starts)
        self._started[request] = StartedRequest(
            slot=self._scheduled[request].slot,
            sampling=request.sampling,
            prompt_token_ids=request.token_ids[: request.num_prompt_tokens].tolist(),
            output_token_ids=request.token_ids[request.num_prompt_tokens :].tolist(),
        )

    def add(self, request: Request, num_new_tokens: int, new_block_ids: NewBlockIds) -> None:
        """Adds the next `num_new_tokens` positions of a request. The last known position samples, pending ones included."""
        start = request.num_computed_tokens
        end = start + num_new_tokens
        samples = end == request.num_tokens and not request.only_scores
        assert request.slot is not None, "a running request has a slot"
        self._scheduled[request] = ScheduledRequest(
            slot=request.slot,
            num_computed_tokens=start,
            num_new_tokens=num_new_tokens,
            token_ids=request.token_ids[start:end].tolist() if end <= len(request.token_ids) else None,
            new_block_ids=new_block_ids,
            samples_position=request.num_output_tokens if samples else None,
        )
        self.budget -= num_new_tokens

    def drop(self, request: Request) -> None:
        """Takes a request out again, if it is in."""
        scheduled = self._scheduled.pop(request, None)
        if scheduled is not None:
            self.budget += scheduled.num_new_tokens
        self._started.pop(request, None)

    def finish(self) -> LaunchedStep | None:
        """The step, its requests counted on as if it had run; None when it is empty."""
        if not self._scheduled:
            return None
        shares = []
        for request, scheduled in self._scheduled.items():
            share = Share(request, scheduled, request.num_preemptions)
            request.num_computed_tokens = share.num_computed_tokens
            request.num_pending_tokens += share.samples
            shares.append(share)
        plan = StepPlan(started=tuple(self._started.values()), requests=tuple(self._scheduled.values()))
        return LaunchedStep(plan, tuple(shares))

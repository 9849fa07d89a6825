"""What passes between the scheduler and a runner: the plan of one step and its result, both plain data without tensors.

The scheduler never sees a tensor, a runner never sees a queue. A runner is anything with `launch`: the torch model runner,
the truthful toy, a fake in a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..ipc.messages import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedRequest:
    """A request that takes a slot in this step. What the runner must know of it for as long as it holds the slot.

    Its row of the block table starts empty; the first blocks come with its ScheduledRequest of the same step.
    """

    slot: int
    sampling: Sampling
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    """Output known so far (after preemption or a resume), for penalties and noise positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledRequest:
    """One request's share of a step: `num_new_tokens` positions from `num_computed_tokens` on get their KV."""

    slot: int
    num_computed_tokens: int
    num_new_tokens: int
    token_ids: Sequence[int] | None
    """The ids at those positions; None: the one token the device itself sampled last for this slot."""
    new_block_ids: tuple[tuple[int, ...], ...]
    """Per KV group: blocks appended to the slot's row of the block table, before this step runs."""
    samples_position: int | None
    """The last position's logits yield the output token of this index (0 = first output token); None: no token is sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step. `started` slots are set up first, then `requests` are computed as one batch."""

    started: tuple[StartedRequest, ...]
    requests: tuple[ScheduledRequest, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(request.num_new_tokens for request in self.requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLogprobs:
    """Log-probabilities of consecutive positions; rows as in ipc.messages.TokenLogprobs."""

    token_ids: list[list[int]]
    """[n][1 + k]: the token itself, then the k likeliest."""
    logprobs: list[list[float]]
    """[n][1 + k]."""
    ranks: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step yields. Requests are named by their index in the plan's `requests`."""

    token_ids: list[list[int]]
    """Per scheduled request the tokens it sampled, in order; empty where `samples_position` is None."""
    logprobs: dict[int, PositionLogprobs] = field(default_factory=dict)
    """Of the sampled tokens, where the request asked for them."""
    prompt_logprobs: dict[int, PositionLogprobs] = field(default_factory=dict)
    """Of the prompt positions after each one computed in this step, where the request asked for them."""
    errors: dict[int, str] = field(default_factory=dict)
    """Requests that failed in this step, with the reason; their tokens are void and the others' are good."""


class PendingStep(Protocol):
    """A step that was launched and may still run on the device."""

    def wait(self) -> StepResult:
        """Blocks until the step is done. Raises what the step raised."""


class Runner(Protocol):
    """Runs steps in the order they are launched: step n + 1 reads what step n wrote, without the host in between."""

    def launch(self, plan: StepPlan) -> PendingStep:
        """Starts a step without waiting for it."""

"""What passes between the scheduler and a runner: the plan of one step and its result, both plain data without tensors.

The scheduler never sees a tensor, a runner never sees a queue. A runner is anything with `launch`: the torch model runner,
the truthful toy, a fake in a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..ipc.messages import Sampling

NO_TOKEN = -1
"""In StepResult.token_ids, where no token was sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedRequest:
    """A request that takes a slot in this step. What the runner must know of it for as long as it holds the slot.

    Its row of the block tables is void; its first blocks come among `new_blocks` of the same step.
    """

    slot: int
    sampling: Sampling
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    """Output known so far (after preemption or a resume), for penalties and noise positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledChunk:
    """A request's share of a step where the host knows the tokens: a prompt, a part of it, or what is computed anew.

    Afterwards the device counts the slot's computed tokens on from `num_computed_tokens + len(token_ids)`.
    """

    slot: int
    num_computed_tokens: int
    token_ids: NDArray[np.int32]
    """The ids at positions num_computed_tokens and following, at least one; they get their KV."""
    samples_position: int | None
    """The last position's logits yield the output token of this index (0 = first output token); None: no token is sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBlocks:
    """Entries of one KV group's block tables, written before the step runs. Three int32 arrays of one length."""

    slots: NDArray[np.int32]
    columns: NDArray[np.int32]
    block_ids: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step, or several in a row. First `started` slots are set up and `new_blocks` written, then one batch is computed.

    The batch's rows are the decodes in the order of `decode_slots`, then `chunks`. A decode computes the token that the device
    itself sampled last for its slot, at the position where the device's count of computed tokens stands, and samples the next;
    the device keeps both counts. A slot is in one row at most.
    """

    started: tuple[StartedRequest, ...]
    decode_slots: NDArray[np.int32]
    chunks: tuple[ScheduledChunk, ...]
    new_blocks: tuple[NewBlocks, ...]
    """One per KV group."""
    num_decode_steps: int = 1
    """So many times the decodes run, one after another, before the host hears of it; their blocks are in the tables. Above 1
    only without `started` and `chunks`, and only for requests that want neither logprobs nor edits that depend on the
    position."""

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return len(self.decode_slots) + len(self.chunks)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step, or in each of them."""
        return len(self.decode_slots) + sum(len(chunk.token_ids) for chunk in self.chunks)


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
    """What a step yields. Requests are named by their row in the plan's batch."""

    token_ids: NDArray[np.int32]
    """[num_decode_steps, num_rows]: the sampled tokens; NO_TOKEN for chunks that sample none and for rows in `errors`."""
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

    def on_idle(self) -> bool:
        """While there is nothing to do: a bounded piece of what makes later steps faster; whether more of it is left."""

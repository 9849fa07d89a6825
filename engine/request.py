"""One request on its way through the engine, and the arithmetic of its progress.

Two counters say everything about progress. The tokens of a request are the ids the host knows plus those that a launched step
has sampled and not returned yet ("pending"); its computed tokens are the positions whose KV has been computed or launched. A
step lets the second catch up with the first. Once a request decodes, both are counted in running.Running, where a step moves
all of them at once; this object has what was true when it last owned no slot. Only the scheduler changes either.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field

from ..ipc.messages import FinishReason, Sampling
from .kv_blocks import BlockTable
from .plan import PositionLogprobs


class RequestStatus(enum.Enum):
    """Where a request stands; why it ended is a FinishReason."""

    WAITING = enum.auto()
    """Owns neither slot nor blocks: not started yet, or preempted."""
    RUNNING = enum.auto()
    """Owns a slot and KV blocks."""
    FINISHED = enum.auto()
    """Its one terminal event is said or about to be; what a step still yields for it is discarded."""


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One request. Compared by identity: the same key may come back after its first bearer has ended."""

    key: Hashable
    handle: int
    """The caller's own number for it, int64; comes with its tokens where they come as arrays."""
    arrival: int
    """Running number, the order of arrival."""
    arrival_s: float
    priority: int
    """Lower is sooner."""
    sampling: Sampling
    cache_salt: str
    token_ids: array[int]
    """int32: prompt and output as far as the host knew them when the request last owned no slot."""
    num_prompt_tokens: int
    max_num_tokens: int
    """Prompt and output together may reach this: max_tokens or the context's end, whichever comes first."""

    status: RequestStatus = RequestStatus.WAITING
    num_computed_tokens: int = 0
    """Until the request decodes."""
    num_pending_tokens: int = 0
    """Sampled by launched steps before the request lost its slot, not returned yet."""
    slot: int | None = None
    blocks: BlockTable | None = None
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the request's full blocks, as far as they were needed."""
    num_preemptions: int = 0
    num_cached_tokens: int | None = None
    """Prompt tokens the prefix cache gave when the request first started."""
    has_answered: bool = False
    """An output was returned: the counters and prompt logprobs that go with the first one are out."""
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list)
    """Of the prompt chunks computed so far, until the first output takes them along."""
    scheduled_s: float | None = None
    """When the request first left the queue."""
    last_token_s: float | None = None
    """When its last token came, as known when it last owned no slot; None before the first."""

    @property
    def order(self) -> tuple[int, int]:
        """Sorts requests: who comes first is served first and preempted last."""
        return (self.priority, self.arrival)

    @property
    def only_scores(self) -> bool:
        """The prompt is computed and nothing is sampled (max_tokens = 0)."""
        return self.sampling.max_tokens == 0

    @property
    def num_tokens_to_compute(self) -> int:
        """How far computing lags behind, of a request that waits or whose known tokens are not all computed yet."""
        return len(self.token_ids) - self.num_computed_tokens

    def reason_to_end(self, token_id: int, num_tokens: int, eos_token_ids: frozenset[int]) -> FinishReason | None:
        """Whether a last token `token_id`, with which there are `num_tokens`, ends the request. STOP goes before LENGTH."""
        sampling = self.sampling
        if num_tokens - self.num_prompt_tokens > sampling.min_tokens and (
            token_id in sampling.stop_token_ids or (token_id in eos_token_ids and not sampling.ignore_eos)
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if num_tokens >= self.max_num_tokens else None

    @property
    def owes_prompt_logprobs(self) -> bool:
        """The request asked for them and they are not out yet."""
        return self.sampling.prompt_logprobs is not None and not self.has_answered

"""One request on its way through the engine: what is known of it, and the arithmetic of its progress.

Two counters say everything about progress. `num_tokens` counts the ids the host knows plus those that a launched step has
sampled and not returned yet ("pending"); `num_computed_tokens` counts the positions whose KV has been computed or launched. A
step lets the second catch up with the first. Only the scheduler changes a request.
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
    arrival: int
    """Running number, the order of arrival."""
    arrival_s: float
    priority: int
    """Lower is sooner."""
    sampling: Sampling
    cache_salt: str
    token_ids: array[int]
    """int32: prompt and output as far as the host knows them."""
    num_prompt_tokens: int
    max_num_tokens: int
    """Prompt and output together may reach this: max_tokens or the context's end, whichever comes first."""

    status: RequestStatus = RequestStatus.WAITING
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    """Sampled by a launched step, not returned yet."""
    slot: int | None = None
    blocks: BlockTable | None = None
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks of `token_ids`, as far as they were needed."""
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

    @property
    def order(self) -> tuple[int, int]:
        """Sorts requests: who comes first is served first and preempted last."""
        return (self.priority, self.arrival)

    @property
    def num_tokens(self) -> int:
        """Known and pending tokens."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_known_output_tokens(self) -> int:
        """Output tokens the host knows, those that came with the request included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        """The same with pending ones."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_prompt_tokens

    @property
    def only_scores(self) -> bool:
        """The prompt is computed and nothing is sampled (max_tokens = 0)."""
        return self.sampling.max_tokens == 0

    @property
    def num_tokens_to_compute(self) -> int:
        """How far computing lags behind; 0 once nothing more is to be sampled, for the last token's KV serves nobody."""
        num_tokens = len(self.token_ids) + self.num_pending_tokens
        if num_tokens >= self.max_num_tokens and not self.only_scores:
            return 0
        return num_tokens - self.num_computed_tokens

    def reason_to_end(self, eos_token_ids: frozenset[int]) -> FinishReason | None:
        """Whether the last known token ends the request. STOP goes before LENGTH."""
        sampling = self.sampling
        token_id = self.token_ids[-1]
        if self.num_known_output_tokens > sampling.min_tokens and (
            token_id in sampling.stop_token_ids or (token_id in eos_token_ids and not sampling.ignore_eos)
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.token_ids) >= self.max_num_tokens else None

    @property
    def owes_prompt_logprobs(self) -> bool:
        """The request asked for them and they are not out yet."""
        return self.sampling.prompt_logprobs is not None and not self.has_answered

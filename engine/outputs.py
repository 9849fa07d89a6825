"""What the engine tells of its requests: the tokens of a step as arrays, and apart from them whatever is more than tokens."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..ipc.messages import FinishReason
from .plan import PositionLogprobs
from .request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """What one step adds to one request. Exactly one output of a request has a finish reason, its last."""

    key: Hashable
    handle: int = 0
    """The number the caller gave the request."""
    position: int
    """Index of the first token here among the request's output tokens."""
    token_ids: list[int]
    finish_reason: FinishReason | None
    num_cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache; with the first output."""
    stop_token_id: int | None = None
    """The token that ended the request, with FinishReason.STOP."""
    logprobs: PositionLogprobs | None = None
    """Of `token_ids`, where asked for."""
    prompt_logprobs: PositionLogprobs | None = None
    """Of prompt positions 1 .. n-1; with the first output, where asked for."""
    error: str | None = None
    """With FinishReason.ERROR."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTokens:
    """Tokens of n requests of which nothing else is to be told, as many of each."""

    handles: NDArray[np.int64]
    """[n]: the numbers their callers gave them."""
    positions: NDArray[np.int32]
    """[n]: index of the first token here among the request's output tokens."""
    token_ids: NDArray[np.int32]
    """[tokens of each, n]."""
    slots: NDArray[np.int64]
    """[n]: where the requests run, until the next step is planned."""

    def __len__(self) -> int:
        return len(self.handles)


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """All that a step has to tell; no request is in both parts.

    Iterating is the slow way to all of it, and has to begin before the next step.
    """

    special: list[RequestOutput] = field(default_factory=list)
    """First and last outputs, and those with logprobs."""
    plain: PlainTokens | None = None
    bearers: Sequence[Request | None] = ()
    """By slot."""

    def __bool__(self) -> bool:
        return bool(self.special) or self.plain is not None

    def __iter__(self) -> Iterator[RequestOutput]:
        return iter([*self.special, *self.plain_outputs()])

    def plain_outputs(self) -> list[RequestOutput]:
        """The plain tokens as one output a request."""
        if self.plain is None:
            return []
        outputs = []
        columns = self.plain.token_ids.T.tolist()
        for slot, position, token_ids in zip(self.plain.slots.tolist(), self.plain.positions.tolist(), columns, strict=True):
            request = self.bearers[slot]
            assert request is not None, "iterated after the next step was planned"
            outputs.append(
                RequestOutput(
                    key=request.key, handle=request.handle, position=position, token_ids=token_ids, finish_reason=None
                )
            )
        return outputs


def make_output(
    request: Request,
    position: int,
    token_ids: list[int],
    *,
    logprobs: PositionLogprobs | None = None,
    reason: FinishReason | None = None,
    error: str | None = None,
) -> RequestOutput:
    """The output for tokens from output position `position` on. The first takes along what goes with it."""
    is_first = not request.has_answered
    is_good = reason not in (FinishReason.ABORT, FinishReason.ERROR)
    prompt_logprobs = _joined(request.prompt_logprobs) if request.owes_prompt_logprobs and is_good else None
    stop_token_id = None
    if reason is FinishReason.STOP:
        stop_token_id = token_ids[-1] if token_ids else request.token_ids[-1]
    request.has_answered = True
    request.prompt_logprobs.clear()
    return RequestOutput(
        key=request.key,
        handle=request.handle,
        position=position,
        token_ids=token_ids,
        finish_reason=reason,
        num_cached_tokens=request.num_cached_tokens if is_first else None,
        stop_token_id=stop_token_id,
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

"""What the engine tells of a request: outputs, the last of which has a finish reason."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ..ipc.messages import FinishReason
from .plan import PositionLogprobs
from .request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """What one step adds to one request. Exactly one output of a request has a finish reason, its last."""

    key: Hashable
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


def make_output(
    request: Request,
    token_ids: list[int],
    *,
    logprobs: PositionLogprobs | None = None,
    reason: FinishReason | None = None,
    error: str | None = None,
) -> RequestOutput:
    """The output for tokens that were just appended to the request. The first takes along what goes with it."""
    is_first = not request.has_answered
    is_good = reason not in (FinishReason.ABORT, FinishReason.ERROR)
    prompt_logprobs = _joined(request.prompt_logprobs) if request.owes_prompt_logprobs and is_good else None
    request.has_answered = True
    request.prompt_logprobs.clear()
    return RequestOutput(
        key=request.key,
        position=request.num_known_output_tokens - len(token_ids),
        token_ids=token_ids,
        finish_reason=reason,
        num_cached_tokens=request.num_cached_tokens if is_first else None,
        stop_token_id=request.token_ids[-1] if reason is FinishReason.STOP else None,
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

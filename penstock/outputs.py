"""What `LLM.generate` and `LLM.chat` return, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token at one position."""

    logprob: float
    """Natural logarithm of its probability under the model itself, before temperature, penalties and bias."""
    rank: int | None = None
    """1 is the likeliest token."""
    decoded_token: str | None = None
    """Its text; part of a character reads as U+FFFD."""


PositionLogprobs = dict[int, Logprob]
"""Token id -> Logprob: the token that stands at the position first, then the likeliest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One answer to a prompt."""

    index: int
    """Which of the prompt's `n` answers."""
    text: str
    """Without the token or stop string that ended it, unless it was asked for."""
    token_ids: list[int]
    """With the token that ended it."""
    cumulative_logprob: float | None
    """Sum over the answer's tokens; None without `logprobs`."""
    logprobs: list[PositionLogprobs] | None
    finish_reason: str | None
    """"stop", "length", or "error" (only in a GenerationError)."""
    stop_reason: int | str | None
    """The stop string or the one of `stop_token_ids` that ended it; None for the model's own end-of-sequence token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """One prompt with its answers."""

    request_id: str
    prompt: str | None
    """None where the prompt was given as token ids."""
    prompt_token_ids: list[int]
    prompt_logprobs: list[PositionLogprobs | None] | None
    """One entry per prompt token, the first of which is None."""
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None
    """Prompt tokens found in the prefix cache."""


class GenerationError(RuntimeError):
    """The engine failed on some prompts. `outputs` has all of them, the good ones complete."""

    def __init__(self, message: str, outputs: list[RequestOutput]) -> None:
        super().__init__(message)
        self.outputs = outputs

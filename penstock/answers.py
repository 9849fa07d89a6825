"""One answer in the making: the engine's tokens become text, logprobs and the reason why it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .engine.core import RequestOutput as EngineOutput
from .engine.plan import PositionLogprobs as EngineLogprobs
from .frontend.detokenizer import Detokenizer
from .frontend.tokenizer import Tokenizer
from .ipc.messages import FinishReason
from .outputs import CompletionOutput, Logprob, PositionLogprobs
from .sampling_params import SamplingParams

_WORDS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.ABORT: "abort", FinishReason.ERROR: "error"}


class Answer:
    """Collects one answer. It ends when the engine says so or a stop string appears; `has_ended` tells."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams, index: int) -> None:
        self._tokenizer = tokenizer
        self._params = params
        self._index = index
        self._detokenizer = (
            Detokenizer(
                tokenizer,
                prompt_token_ids,
                stop=params.stop_strings,
                include_stop=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
                min_tokens=params.min_tokens,
            )
            if params.detokenize
            else None
        )
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[PositionLogprobs] = []
        self._finish_reason: str | None = None
        self._stop_reason: int | str | None = None
        self.error: str | None = None
        """Why the engine failed on it."""
        self.num_cached_tokens: int | None = None
        self.prompt_logprobs: EngineLogprobs | None = None

    @property
    def has_ended(self) -> bool:
        return self._finish_reason is not None

    @property
    def num_tokens(self) -> int:
        """Of the answer so far."""
        return len(self._token_ids)

    def take(self, output: EngineOutput) -> None:
        """Adds what a step gave; nothing after the end."""
        if self.num_cached_tokens is None:
            self.num_cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        num_used = self._add_text(output)
        self._token_ids += output.token_ids[:num_used]
        if output.logprobs is not None:
            self._logprobs += position_logprobs(self._tokenizer, output.logprobs)[:num_used]
        if self._finish_reason is None and output.finish_reason is not None:
            self._end(output)

    def output(self) -> CompletionOutput:
        """The answer as it stands."""
        has_logprobs = self._params.logprobs is not None
        sampled = (logprobs[token_id].logprob for token_id, logprobs in zip(self._token_ids, self._logprobs, strict=True))
        return CompletionOutput(
            index=self._index,
            text="".join(self._texts),
            token_ids=self._token_ids,
            cumulative_logprob=math.fsum(sampled) if has_logprobs else None,
            logprobs=self._logprobs if has_logprobs else None,
            finish_reason=self._finish_reason,
            stop_reason=self._stop_reason,
        )

    def _add_text(self, output: EngineOutput) -> int:
        """How many of the tokens belong to the answer: all, or up to the one that completed a stop string."""
        num_tokens = len(output.token_ids)
        if self._detokenizer is None:
            return num_tokens
        ended_by_token = output.stop_token_id is not None and not self._params.include_stop_str_in_output
        delta = self._detokenizer.push(output.token_ids[: num_tokens - ended_by_token])
        self._texts.append(delta.text)
        if delta.stop_string is None:
            return num_tokens
        self._finish_reason, self._stop_reason = "stop", delta.stop_string
        return delta.num_tokens_used

    def _end(self, output: EngineOutput) -> None:
        assert output.finish_reason is not None
        self._finish_reason = _WORDS[output.finish_reason]
        self.error = output.error
        if output.stop_token_id in (self._params.stop_token_ids or ()):
            self._stop_reason = output.stop_token_id
        if self._detokenizer is not None:
            self._texts.append(self._detokenizer.finish())


def position_logprobs(tokenizer: Tokenizer, found: EngineLogprobs) -> list[PositionLogprobs]:
    """Per position the token itself and then the likeliest ones, with their texts."""
    positions = []
    for token_ids, logprobs, rank in zip(found.token_ids, found.logprobs, found.ranks, strict=True):
        ranked = zip(token_ids, logprobs, [rank, *range(1, len(token_ids))], strict=True)
        position: PositionLogprobs = {}
        for token_id, logprob, token_rank in ranked:
            position.setdefault(token_id, Logprob(logprob, token_rank, tokenizer.token_text(token_id)))
        positions.append(position)
    return positions

"""One HTTP request's generation: its choices submitted together and read as text, for chat and completions, streamed or not."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from ..ipc.messages import FinishReason, Sampling
from .detokenizer import Detokenizer
from .open_requests import Delta, LogprobRow, NewRequest, RequestStream
from .openai_types import GenerationFields
from .sampling import choice_seeds
from .served_model import ServedModel
from .service import Service


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and how its answers are drawn; `sampling` is that of the first choice."""

    token_ids: list[int]
    sampling: Sampling


@dataclass(slots=True)
class ChoiceDelta:
    """What is new of one choice."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[LogprobRow]
    prompt_logprobs: list[LogprobRow] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Choice:
    """One choice so far."""

    prompt: Prompt
    detokenizer: Detokenizer
    num_tokens: int = 0
    num_cached_tokens: int = 0


@dataclass(slots=True)
class Generation:
    """All choices of a request: `n` for each prompt, in order. `close` must be called in any case."""

    stream: RequestStream
    choices: list[Choice]
    num_per_prompt: int
    include_stop: bool
    usage_prompts: Sequence[Prompt] = field(default_factory=tuple)

    @classmethod
    async def start(
        cls, service: Service, model: ServedModel, fields: GenerationFields, prompts: Sequence[Prompt]
    ) -> Generation:
        """Submits everything. Raises EngineUnavailable."""
        num_per_prompt = fields.n or 1
        choices: list[Choice] = []
        requests: list[NewRequest] = []
        for prompt in prompts:
            token_ids = array("i", prompt.token_ids)
            for seed in choice_seeds(prompt.sampling.seed, num_per_prompt):
                sampling = dataclasses.replace(prompt.sampling, seed=seed)
                requests.append(
                    NewRequest(
                        prompt_token_ids=token_ids,
                        sampling=sampling,
                        priority=fields.priority,
                        cache_salt=fields.cache_salt or "",
                    )
                )
                choices.append(Choice(prompt, _detokenizer(model, fields, prompt)))
        interval = service.config.stream_interval if fields.stream else 1
        stream = await service.client.submit(requests, model.facts, tokens_per_wake_up=interval)
        return cls(stream, choices, num_per_prompt, fields.include_stop_str_in_output, prompts)

    async def deltas(self) -> AsyncIterator[ChoiceDelta]:
        """What arrives, until every choice is finished. Raises what a request failed with."""
        async for index, delta in self.stream:
            yield self.read(index, delta)

    def close(self) -> None:
        """Aborts what still runs."""
        self.stream.close()

    def usage(self) -> dict[str, object]:
        """OpenAI's usage of all choices so far; each prompt counts once."""
        num_prompt = sum(len(prompt.token_ids) for prompt in self.usage_prompts)
        num_cached = sum(choice.num_cached_tokens for choice in self.choices[:: self.num_per_prompt])
        return _usage(num_prompt, sum(choice.num_tokens for choice in self.choices), num_cached)

    def usage_of(self, index: int) -> dict[str, object]:
        """OpenAI's usage of one choice so far."""
        choice = self.choices[index]
        return _usage(len(choice.prompt.token_ids), choice.num_tokens, choice.num_cached_tokens)

    def read_escaped(self, index: int, token_ids: list[int]) -> bytes | None:
        """The text of tokens that came alone, escaped for JSON, if a look-up will do; None: nothing was done, `read` them."""
        choice = self.choices[index]
        escaped = choice.detokenizer.push_escaped(token_ids)
        if escaped is not None:
            choice.num_tokens += len(token_ids)
        return escaped

    def read(self, index: int, delta: Delta) -> ChoiceDelta:
        """The delta as text."""
        choice = self.choices[index]
        choice.num_cached_tokens = delta.num_cached_tokens or choice.num_cached_tokens
        stopped_by_token = delta.finish_reason is FinishReason.STOP
        shown_ids = delta.token_ids[:-1] if stopped_by_token and not self.include_stop else delta.token_ids
        read = choice.detokenizer.push(shown_ids)
        news = ChoiceDelta(index, read.text, delta.token_ids, delta.logprobs, delta.prompt_logprobs)
        if read.stop_string is not None:
            news.token_ids = delta.token_ids[: read.num_tokens_used]
            news.logprobs = delta.logprobs[: read.num_tokens_used]
            news.finish_reason, news.stop_reason = "stop", read.stop_string
            self.stream.stop(index)
        elif delta.finish_reason is not None:
            news.text += choice.detokenizer.finish()
            news.finish_reason = "stop" if stopped_by_token else "length"
            asked = choice.prompt.sampling.stop_token_ids
            news.stop_reason = delta.stop_token_id if delta.stop_token_id in asked else None
        choice.num_tokens += len(news.token_ids)
        return news


def _detokenizer(model: ServedModel, fields: GenerationFields, prompt: Prompt) -> Detokenizer:
    return Detokenizer(
        model.tokenizer,
        prompt.token_ids,
        stop=fields.stop or (),
        include_stop=fields.include_stop_str_in_output,
        skip_special_tokens=fields.skip_special_tokens,
        min_tokens=fields.min_tokens or 0,
        escaped_pieces=model.escaped_pieces[fields.skip_special_tokens],
    )


def _usage(num_prompt: int, num_completion: int, num_cached: int) -> dict[str, object]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }

"""From the fields of a request to the engine's Sampling: defaults, context limits, seeds. Shared by both endpoints."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from ..ipc.messages import Sampling
from .errors import BadRequest, ContextTooLong
from .openai_types import GenerationFields
from .seeds import SEED_LIMIT, child_seed
from .served_model import ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobsWanted:
    """How many of the likeliest tokens to report per position; None: no logprobs at all."""

    output: int | None = None
    prompt: int | None = None


def max_output_tokens(
    model: ServedModel, num_prompt_tokens: int, asked: int | None, default: int | None, *, prompt_param: str, asked_param: str
) -> int:
    """How many tokens may come after the prompt; `default` None: as many as the context has left.

    Raises ContextTooLong with the numbers and the field that is to blame: nothing is ever truncated.
    """
    limit = model.facts.max_model_len
    if num_prompt_tokens > limit or (num_prompt_tokens == limit and asked is None):
        raise ContextTooLong(
            f"The model's context is {limit} tokens, but the prompt has {num_prompt_tokens}. Shorten the prompt.", prompt_param
        )
    left = limit - num_prompt_tokens
    if asked is None:
        return left if default is None else min(default, left)
    if asked > left:
        raise ContextTooLong(
            f"The model's context is {limit} tokens, but {num_prompt_tokens} of the prompt and {asked} of the answer"
            f" were asked for. Shorten the prompt{f' or ask for at most {left} tokens' if left else ''}.",
            asked_param,
        )
    return asked


def seed_of(fields: GenerationFields) -> int:
    """The request's seed, a random one if it has none."""
    return secrets.randbits(63) if fields.seed is None else fields.seed % SEED_LIMIT


def to_sampling(fields: GenerationFields, model: ServedModel, max_tokens: int, wanted: LogprobsWanted) -> Sampling:
    """Sampling of the request's first choice. Raises BadRequest for token ids the model does not have."""
    stop_token_ids = fields.stop_token_ids or []
    model.check_token_ids(stop_token_ids, "stop_token_ids")
    min_tokens = fields.min_tokens or 0
    if min_tokens > max_tokens:
        raise BadRequest(f"min_tokens is {min_tokens}, more than the {max_tokens} tokens the answer may have.", "min_tokens")
    defaults = model.facts.generation_defaults
    top_k = int(_given(fields.top_k, defaults.get("top_k"), 0))
    return Sampling(
        seed=seed_of(fields),
        max_tokens=max_tokens,
        temperature=_given(fields.temperature, defaults.get("temperature"), 1.0),
        top_p=_given(fields.top_p, defaults.get("top_p"), 1.0),
        top_k=top_k if 0 < top_k < model.facts.vocab_size else 0,
        min_p=_given(fields.min_p, defaults.get("min_p"), 0.0),
        presence_penalty=_given(fields.presence_penalty, 0.0),
        frequency_penalty=_given(fields.frequency_penalty, 0.0),
        repetition_penalty=_given(fields.repetition_penalty, defaults.get("repetition_penalty"), 1.0),
        logit_bias=_logit_bias(fields.logit_bias or {}, model),
        min_tokens=min_tokens,
        stop_token_ids=tuple(stop_token_ids),
        ignore_eos=fields.ignore_eos,
        logprobs=wanted.output,
        prompt_logprobs=wanted.prompt,
    )


def choice_seeds(seed: int, num_choices: int) -> list[int]:
    """The seeds of a request's choices."""
    return [child_seed(seed, index) for index in range(num_choices)]


def _given(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _logit_bias(biases: dict[str, float], model: ServedModel) -> dict[int, float]:
    by_id = {int(key): float(value) for key, value in biases.items() if key.isascii() and key.isdecimal() and len(key) <= 10}
    if len(by_id) != len(biases):
        raise BadRequest("logit_bias: keys must be token ids, each once", "logit_bias")
    model.check_token_ids(list(by_id), "logit_bias")
    return by_id

"""What `LLM.generate` takes as prompts, read into token ids and checked against the model before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict


class TextPrompt(TypedDict, total=False):
    """A text; `cache_salt` keeps its prefix cache apart from other salts'."""

    prompt: str
    cache_salt: str


class TokensPrompt(TypedDict, total=False):
    """Token ids; `prompt` is a text to remember beside them."""

    prompt_token_ids: Sequence[int]
    prompt: str
    cache_salt: str


AnyPrompt = str | Sequence[int] | TextPrompt | TokensPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, ready to run."""

    text: str | None
    token_ids: list[int]
    cache_salt: str = ""


def as_list(prompts: Any) -> list[Any]:
    """One prompt or a list of prompts as a list of prompts. Raises TypeError for anything else."""
    if isinstance(prompts, (str, dict)):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise TypeError(f"prompts must be texts, token ids or dictionaries, got {type(prompts).__name__}")
    if prompts and all(_is_int(item) for item in prompts):
        return [prompts]
    return list(prompts)


def read_prompt(prompt: Any, encode: Callable[[str], list[int]]) -> Prompt:
    """One of AnyPrompt. Raises TypeError for another kind, ValueError for a text that cannot be encoded."""
    fields = prompt if isinstance(prompt, dict) else {"prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt}
    unknown = sorted(set(fields) - {"prompt", "prompt_token_ids", "cache_salt"})
    if unknown:
        raise ValueError(f"prompts have no {', '.join(map(repr, unknown))}; only prompt, prompt_token_ids and cache_salt")
    text, token_ids, cache_salt = fields.get("prompt"), fields.get("prompt_token_ids"), fields.get("cache_salt", "")
    if not isinstance(text, str | None) or not isinstance(cache_salt, str):
        raise TypeError("a prompt's text and cache_salt must be str")
    if token_ids is None:
        if text is None:
            raise ValueError("a prompt needs prompt or prompt_token_ids")
        return Prompt(text=text, token_ids=encode(text), cache_salt=cache_salt)
    if not isinstance(token_ids, Sequence) or not all(_is_int(token_id) for token_id in token_ids):
        raise TypeError("a prompt must be a text, a list of token ids or a dictionary")
    return Prompt(text=text, token_ids=list(token_ids), cache_salt=cache_salt)


def check_prompt(prompt: Prompt, index: int, *, vocab_size: int, max_model_len: int) -> None:
    """Raises ValueError with the numbers for a prompt that the model cannot answer."""
    num_tokens = len(prompt.token_ids)
    if num_tokens == 0:
        raise ValueError(f"prompt {index} is empty: at least one token is needed")
    if num_tokens >= max_model_len:
        raise ValueError(
            f"prompt {index} has {num_tokens} tokens; the context holds {max_model_len}, one of them for the answer"
        )
    outside = next((token_id for token_id in prompt.token_ids if not 0 <= token_id < vocab_size), None)
    if outside is not None:
        raise ValueError(f"prompt {index} has token id {outside}; the model has ids 0 to {vocab_size - 1}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

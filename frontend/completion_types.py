"""The body of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SkipValidation, field_validator

from .openai_types import MAX_LOGPROBS, GenerationFields

MAX_PROMPTS = 1024


class CompletionRequest(GenerationFields):
    """POST /v1/completions."""

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], SkipValidation]
    """One text, several, one list of token ids, or several."""
    echo: bool | None = None
    """The prompt is part of the answer; with logprobs also its tokens'."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = True

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_kind(cls, prompt: Any) -> Any:
        """Checks the type: pydantic would try every kind of prompt on every token id."""
        items = prompt if isinstance(prompt, list) else [prompt]
        kinds = {_kind(item) for item in items}
        if not items or len(kinds) != 1 or kinds == {"something else"} or (kinds == {"id"} and not isinstance(prompt, list)):
            raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists, not empty")
        if kinds != {"id"} and len(items) > MAX_PROMPTS:
            raise ValueError(f"has {len(items)} prompts, at most {MAX_PROMPTS} are allowed")
        return prompt

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one by one."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [prompt]
        return prompt


def _kind(item: Any) -> str:
    if isinstance(item, str):
        return "text"
    if type(item) is int:
        return "id"
    if isinstance(item, list) and item and all(type(token_id) is int for token_id in item):
        return "ids"
    return "something else"

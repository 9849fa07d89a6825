"""Prompts of a wanted length: random token ids, or random common words. They share nothing but the prefix they are meant to."""

from __future__ import annotations

import json
import random
from functools import cached_property
from typing import Any

from .settings import Work

_FIRST_TOKEN_ID = 256
"""Below are bytes and special tokens in many vocabularies."""
WORDS = """
    the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what
    all were we when your can said there use an each which she do how their if will up other about out many then them these
    so some her would make like him into time has look two more write go see number no way could people my than first water
    been call who oil its now find long down day did get come made may part over new sound take only little work know place
    year live me back give most very after thing our just name good sentence man think say great where help through much
    before line right
""".split()  # noqa: SIM905


_TOOLS_SHARE = 0.5
"""Of a system message with tools: their definitions; the rest are words."""


def tools_text(count: int) -> str:
    """The definitions of so many tools, a line of JSON each, as agents have them in their system message."""
    return "\n".join(json.dumps(_tool(number)) for number in range(count))


def _tool(number: int) -> dict[str, Any]:
    numbers = random.Random(f"tool-{number}")

    def words(count: int, separator: str = " ") -> str:
        return separator.join(numbers.choices(WORDS, k=count))

    properties = {words(2, "_"): {"type": kind, "description": words(6)} for kind in ("string", "integer")}
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    function = {"name": words(2, "_"), "description": words(12), "parameters": parameters}
    return {"type": "function", "function": function}


class Prompts:
    """Makes the prompts of a work list. The same index gives the same prompt in every process."""

    def __init__(self, work: Work) -> None:
        self._work = work
        first = min(_FIRST_TOKEN_ID, work.vocab_size // 2)
        self._token_ids = [str(token_id) for token_id in range(first, work.vocab_size)]

    def token_ids(self, index: int, num_tokens: int) -> str:
        """A JSON array: the shared prefix, then `num_tokens` ids of its own."""
        own = ",".join(self._random_ids(f"prompt-{self._work.seed}{self._work.variant}-{index}", num_tokens))
        return f"[{self._shared_ids}{own}]"

    def text(self, index: int, turn: int, num_tokens: int) -> str:
        """Words that make about `num_tokens` tokens."""
        return self._random_words(f"words-{self._work.seed}{self._work.variant}-{index}-{turn}", num_tokens)

    @cached_property
    def system_text(self) -> str:
        """What all conversations begin with: about `shared_prefix_tokens` tokens, empty if there is none."""
        length = self._work.shared_prefix_tokens
        if not length:
            return ""
        num_tools = int(_TOOLS_SHARE * length / self._work.tokens_per_tool) if self._work.has_tools else 0
        words = self._random_words("shared", length - num_tools * self._work.tokens_per_tool)
        return f"{tools_text(num_tools)}\n{words}" if num_tools else words

    @cached_property
    def _shared_ids(self) -> str:
        return "".join(f"{token_id}," for token_id in self._random_ids("shared", self._work.shared_prefix_tokens))

    def _random_ids(self, seed: str, count: int) -> list[str]:
        return random.Random(seed).choices(self._token_ids, k=count)

    def _random_words(self, seed: str, num_tokens: float) -> str:
        return " ".join(random.Random(seed).choices(WORDS, k=max(1, round(num_tokens / self._work.tokens_per_word))))

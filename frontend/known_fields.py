"""Fields of the OpenAI API and of other servers that no request model declares: refused, accepted, or unknown.

A field whose feature is not built is a 400 that names it, unless its value asks for nothing. A field without meaning here is
accepted. Anything else is ignored and logged once, because clients send their providers' own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .errors import BadRequest

_log = logging.getLogger(__name__)

_NOT_BUILT: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "early_stopping": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "response_format": ({"type": "text"},),
    "return_tokens_as_token_ids": (False,),
    "structural_tag": (),
    "structured_outputs": (),
    "suffix": ("",),
    "thinking_token_budget": (),
    "tool_choice": ("none",),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Name -> the values that ask for nothing, beside null."""

_WITHOUT_MEANING = frozenset(
    {
        "include_reasoning",
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "user",
        "verbosity",
    }
)
_MAX_LOGGED_NAMES = 1000


class UndeclaredFields:
    """Judges them; remembers which unknown names were logged."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def check(self, extra: Mapping[str, Any] | None) -> None:
        """Raises BadRequest for a field that asks for something that is not built."""
        for name, value in (extra or {}).items():
            if name in _NOT_BUILT:
                if value is not None and not any(_is_same(value, neutral) for neutral in _NOT_BUILT[name]):
                    raise BadRequest(f"{name} is not supported.", name)
            elif name not in _WITHOUT_MEANING and name not in self._logged and len(self._logged) < _MAX_LOGGED_NAMES:
                self._logged.add(name)
                _log.warning("ignoring the unknown request field %.100r", name)


def _is_same(value: Any, neutral: Any) -> bool:
    """Equal, where false is not 0 and true not 1."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)

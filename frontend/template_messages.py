"""Messages as clients send them, turned into what chat templates expect to find."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the message.

    Content that is a list of text parts becomes one text, as most templates know only texts. A tool call's arguments, JSON
    text on the wire, become the value they stand for. Reasoning stands under the names that templates read, as in
    transformers.
    """
    reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    found: dict[str, Any] = (
        {**message} if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
    )
    if (text := _joined(found.get("content"))) is not None:
        found["content"] = text
    if isinstance(calls := found.get("tool_calls"), list):
        found["tool_calls"] = [_with_arguments(call) for call in calls]
    return found


def _joined(content: Any) -> str | None:
    """The text of a list that has nothing but text parts."""
    if not isinstance(content, list) or not content:
        return None
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(content) else None


def _with_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):  # what a model once wrote need not be JSON
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call

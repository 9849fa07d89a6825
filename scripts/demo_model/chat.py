"""Conversations as plain data, and their text.

A `Thread` is one topic: some exchanges, each ending in an answer of the assistant. `render` writes a list of OpenAI-style
messages as text; it is the fast twin of `chat_template.jinja`, and a test holds the two equal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more of these functions. Their signatures are given within <tools></tools>:\n<tools>"
)
TOOLS_TAIL = (
    "\n</tools>\n\nTo call a function, write a JSON object with its name and its arguments within <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <function name>, "arguments": <arguments as JSON>}\n</tool_call>'
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is asked and answered: messages from a user's question up to an assistant's answer."""

    messages: tuple[Message, ...]
    accepted: tuple[str, ...] = ()  # texts that count as right for the last message; empty: only its own


@dataclass(frozen=True, slots=True)
class Thread:
    """Exchanges that belong together and come in this order."""

    exchanges: tuple[Exchange, ...]
    tools: tuple[Tool, ...] = ()
    system: str | None = None
    apart: bool = False  # other threads may come between the first exchange and the others
    exclusive: bool = False  # shares its conversation with no other thread


def user(text: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


def ask(question: str, answer: str, *more: str) -> Exchange:
    """One question with its answer; `more` are other answers that are right too."""
    return Exchange((user(question), assistant(answer)), (answer, *more))


def calls(*named: tuple[str, dict[str, Any]]) -> Message:
    """An assistant message that calls tools: (name, arguments) each."""
    functions = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in named]
    return {"role": "assistant", "content": None, "tool_calls": functions}


def assistant_text(message: Message) -> str:
    """The text that the model has to write for an assistant's message."""
    parts = [message["content"]] if message["content"] else []
    for call in message.get("tool_calls", ()):
        parts.append(f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>")
    return "\n".join(parts)


def render(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
    """The conversation as the model reads it, without a prompt for the next answer."""
    rest = list(messages)
    head = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else ""
    parts = []
    if tools:
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        head = (head + "\n\n" if head else "") + TOOLS_HEAD + listed + TOOLS_TAIL
    if head:
        parts.append(f"<|im_start|>system\n{head}<|im_end|>\n")
    for index, message in enumerate(rest):
        role = message["role"]
        if role == "tool":
            if index == 0 or rest[index - 1]["role"] != "tool":
                parts.append("<|im_start|>user")
            parts.append(f"\n<tool_response>\n{message['content']}\n</tool_response>")
            if index + 1 == len(rest) or rest[index + 1]["role"] != "tool":
                parts.append("<|im_end|>\n")
        else:
            text = assistant_text(message) if role == "assistant" else message["content"]
            parts.append(f"<|im_start|>{role}\n{text}<|im_end|>\n")
    return "".join(parts)

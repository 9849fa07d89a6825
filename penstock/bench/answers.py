"""Reads a streamed answer as it comes: when chunks with tokens arrive, the server's usage figures, errors.

Called for every received piece, so what is common is decided by looking for bytes; JSON is parsed for the other events only. In
JSON a quotation mark inside a string is escaped, so `"finish_reason":null` with bare ones is a field and no text.
"""

from __future__ import annotations

import json
from array import array
from typing import Any

from .settings import CHAT

_LONGEST_COMPLAINT = 300
_UNFINISHED = (b'"finish_reason":null', b'"finish_reason": null')
_CONTENT = b'"content":"'
_USAGE = b'"prompt_tokens"'


class StreamAnswer:
    """The answer to one request. `keep_text` also collects what was said, at the price of parsing every event."""

    __slots__ = ("_fast_path", "_keep_text", "_rest", "_stray", "done", "error", "first", "gaps", "last", "texts", "usage")

    def __init__(self, endpoint: str, *, keep_text: bool = False) -> None:
        self.first: float | None = None
        self.last = 0.0
        self.gaps = array("f")
        self.usage: dict[str, Any] | None = None
        self.error: str | None = None
        self.done = False
        self.texts: list[str] = []
        self._keep_text = keep_text
        self._rest = b""
        self._stray = b""
        self._fast_path = None if keep_text else _says_something if endpoint == CHAT else _goes_on

    def feed(self, now: float, data: bytes) -> None:
        """A piece of the body that was received at `now`."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                if self._fast_path is not None and self._fast_path(line):
                    self._arrival(now)
                else:
                    self._event(now, line[5:].strip())
            elif len(self._stray) < _LONGEST_COMPLAINT:
                self._stray += line.strip()

    def finish(self) -> str | None:
        """After the last piece: what is wrong with the answer, or None."""
        if self.error is not None:
            return self.error
        if self.first is None:
            return f"no token came {self.beginning()}".strip()
        return None if self.done or self.usage is not None else "the stream ended early"

    def beginning(self) -> str:
        """Of what came beside events, as errors do."""
        return (self._stray + self._rest)[:_LONGEST_COMPLAINT].decode(errors="replace")

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def _arrival(self, now: float) -> None:
        if self.first is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now

    def _event(self, now: float, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
            if event.get("error"):
                self.error = f"error in the stream: {json.dumps(event['error'])[:_LONGEST_COMPLAINT]}"
                return
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices") or ():
                if self._has_token(choice):
                    self._arrival(now)
        except (ValueError, AttributeError, TypeError):
            self.error = f"not an event of this API: {data[:_LONGEST_COMPLAINT].decode(errors='replace')}"

    def _has_token(self, choice: dict[str, Any]) -> bool:
        """An empty text can be a token that is half a character, and counts; the beginning and the end of a message do not."""
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content")
        if self._keep_text and isinstance(text, str):
            self.texts.append(text)
        if text or delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls"):
            return True
        return not choice.get("finish_reason") and not delta.get("role")


def _goes_on(line: bytes) -> bool:
    """A completion's event that is not the last: it stands for tokens even where its text is empty."""
    return (_UNFINISHED[0] in line or _UNFINISHED[1] in line) and _USAGE not in line


def _says_something(line: bytes) -> bool:
    """A chat's event with content; others are looked at more closely."""
    place = line.find(_CONTENT)
    return place >= 0 and line[place + len(_CONTENT)] != ord('"') and _USAGE not in line

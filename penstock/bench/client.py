"""Sends one request as the API wants it and records what became of it. Nothing that a server does raises."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from .answers import StreamAnswer
from .http_client import HttpClient, HttpError
from .records import Record
from .settings import CHAT, Target

_ROUTES = {CHAT: "/chat/completions"}
_LONGEST_COMPLAINT = 300

Message = dict[str, str]


class ApiClient:
    """Streams answers from one server."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._http = HttpClient(target.base_url, target.api_key)
        self._route = _ROUTES.get(target.endpoint, "/completions")
        fields: dict[str, Any] = {"model": target.model, "temperature": target.temperature, "stream": True}
        if target.ignore_eos:
            fields["ignore_eos"] = True
        if target.include_usage:
            fields["stream_options"] = {"include_usage": True}
        self._common = json.dumps(fields | target.extra_body, separators=(",", ":"))[:-1].encode()
        self.num_in_flight = 0
        self.num_chunks = 0
        """Chunks with tokens of all answers that have ended."""

    async def complete(self, prompt: str, record: Record) -> None:
        """A completion; `prompt` is JSON, an array of token ids. Fills the record."""
        await self._stream(f'"prompt":{prompt}', record, StreamAnswer(self._target.endpoint))

    async def chat(self, messages: list[Message], record: Record, *, keep_text: bool) -> str:
        """A chat completion; fills the record, and returns what was said if that is to be kept."""
        answer = StreamAnswer(self._target.endpoint, keep_text=keep_text)
        await self._stream(f'"messages":{json.dumps(messages)}', record, answer)
        return answer.text

    def close(self) -> None:
        self._http.close()

    async def _stream(self, prompt_field: str, record: Record, answer: StreamAnswer) -> None:
        body = b'%s,%s,"max_tokens":%d}' % (self._common, prompt_field.encode(), record.wanted_tokens)
        self.num_in_flight += 1
        record.start = time.monotonic()
        try:
            async with asyncio.timeout(self._target.request_timeout_s):
                status = await self._http.send("POST", self._route, body, answer.feed)
            record.end = time.monotonic()
            record.error = answer.finish() if status == 200 else f"HTTP {status}: {answer.beginning()}"
        except TimeoutError:
            record.error = f"no whole answer in {self._target.request_timeout_s:g} s"
        except (HttpError, OSError) as error:
            record.error = answer.error or f"{error}"
        finally:
            self.num_in_flight -= 1
            self.num_chunks += len(answer.gaps) + (answer.first is not None)
            _fill(record, answer)


def _fill(record: Record, answer: StreamAnswer) -> None:
    if record.end is None:
        record.end = time.monotonic()
    if answer.first is not None:
        record.first, record.last, record.gaps = answer.first, answer.last, answer.gaps.tobytes()
    record.num_output = record.num_chunks
    usage = answer.usage
    if usage is None:
        return
    try:
        record.num_output, record.num_input = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
        record.has_usage = True
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        record.num_cached = None if cached is None else int(cached)
    except (KeyError, TypeError, ValueError, AttributeError):
        record.error = record.error or f"a usage block of another form: {json.dumps(usage)[:_LONGEST_COMPLAINT]}"

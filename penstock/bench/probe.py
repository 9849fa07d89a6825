"""What has to be known of a server before the load: its model's name, and how its tokenizer counts texts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from .http_client import HttpClient, HttpError
from .prompts import WORDS, tools_text
from .settings import BenchError, Target, Work

_TIMEOUT_S = 60.0
_FEW_WORDS, _MANY_WORDS = 16, 272
_NUM_TOOLS = 4
_LONGEST_COMPLAINT = 300


async def model_name(base_url: str, api_key: str | None) -> str:
    """The first model of the server's list; BenchError if there is no such server or list."""
    answer = await _ask(base_url, api_key, "GET", "/models", b"")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise BenchError(f"{base_url}/models names no model: say which with --model") from None


async def measure_texts(target: Target, work: Work) -> Work:
    """The work with what its texts cost on this server, from the usage of short answers; unchanged where it does not say."""
    few, many = [await _prompt_tokens(target, _words(count)) for count in (_FEW_WORDS, _MANY_WORDS)]
    if few is None or many is None or many <= few:
        return work
    tokens_per_word = (many - few) / (_MANY_WORDS - _FEW_WORDS)
    work = replace(work, tokens_per_word=tokens_per_word)
    if not work.has_tools:
        return work
    with_tools = await _prompt_tokens(target, f"{tools_text(_NUM_TOOLS)}\n{_words(_FEW_WORDS)}")
    if with_tools is None or with_tools <= few:
        return work
    return replace(work, tokens_per_tool=(with_tools - few) / _NUM_TOOLS)


def _words(count: int) -> str:
    return " ".join(WORDS[index % len(WORDS)] for index in range(count))


async def _prompt_tokens(target: Target, text: str) -> int | None:
    body = {"model": target.model, "messages": [{"role": "user", "content": text}], "max_tokens": 1, **target.extra_body}
    answer = await _ask(target.base_url, target.api_key, "POST", "/chat/completions", json.dumps(body).encode())
    usage = answer.get("usage") if isinstance(answer, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


async def _ask(base_url: str, api_key: str | None, method: str, route: str, body: bytes) -> Any:
    client = HttpClient(base_url, api_key)
    pieces: list[bytes] = []
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            status = await client.send(method, route, body, lambda _, piece: pieces.append(piece))
    except TimeoutError:
        raise BenchError(f"{base_url}{route} has not answered in {_TIMEOUT_S:g} s") from None
    except (HttpError, OSError) as error:
        raise BenchError(f"{base_url}{route}: {error}") from None
    finally:
        client.close()
    text = b"".join(pieces)
    if status != 200:
        raise BenchError(f"{base_url}{route} answered {status}: {text[:_LONGEST_COMPLAINT].decode(errors='replace')}")
    try:
        return json.loads(text)
    except ValueError:
        raise BenchError(f"{base_url}{route} did not answer with JSON: is this an OpenAI-compatible server?") from None

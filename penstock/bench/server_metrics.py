"""What the server counts itself, read from its /metrics before and after a load. A server without them tells nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re

from .http_client import HttpClient, HttpError

_TIMEOUT_S = 10.0
_SETTLING_S = 2.0
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: \d+)?")
COUNTERS = {
    "prompt_tokens_encoded": ("penstock:tokenized_prompt_tokens_total", 'source="encoded"'),
    "prompt_tokens_reused": ("penstock:tokenized_prompt_tokens_total", 'source="reused"'),
}
"""Name in the report -> name of the counter and a label; samples that differ in other labels are added up."""

Counters = dict[str, float]


async def read(base_url: str, api_key: str | None) -> Counters:
    """The counters that the server has, by their name in the report; none where it does not answer."""
    client = HttpClient(base_url.removesuffix("/v1"), api_key)
    pieces: list[bytes] = []
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            status = await client.send("GET", "/metrics", b"", lambda _, piece: pieces.append(piece))
    except (TimeoutError, HttpError, OSError):
        return {}
    finally:
        client.close()
    return parse(b"".join(pieces).decode(errors="replace")) if status == 200 else {}


async def read_settled(base_url: str, api_key: str | None) -> Counters:
    """The same once all of the server's processes have told each other what they counted until this moment."""
    found = await read(base_url, api_key)
    if not found:
        return {}
    await asyncio.sleep(_SETTLING_S)
    return await read(base_url, api_key)


def parse(text: str) -> Counters:
    """Of Prometheus' text format."""
    found: Counters = {}
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line.strip())
        if match is None:
            continue
        for name, (counter, label) in COUNTERS.items():
            if match[1] == counter and label in (match[2] or "").split(","):
                with contextlib.suppress(ValueError):
                    found[name] = found.get(name, 0.0) + float(match[3])
    return found


def increase(before: Counters, after: Counters) -> dict[str, int]:
    """What a load has added; a counter that fell belongs to a server that was started anew, and tells nothing."""
    return {name: round(after[name] - before.get(name, 0.0)) for name in after if after[name] >= before.get(name, 0.0)}

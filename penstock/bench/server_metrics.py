"""What the server counts itself, read from its /metrics before and after a load. A server without them tells nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re

from .http_client import HttpClient, HttpError

_TIMEOUT_S = 10.0
_SETTLING_S = 2.0
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})? (\S+)(?: \d+)?")
COUNTERS = {
    "retokenized_tokens": "penstock:retokenized_tokens_total",
}
"""Name in the report -> name of the counter; samples with different labels are added up."""

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


def parse(text: str) -> Counters:
    """Of Prometheus' text format."""
    found: Counters = {}
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line.strip())
        if match is None:
            continue
        for name, counter in COUNTERS.items():
            if match[1] == counter:
                with contextlib.suppress(ValueError):
                    found[name] = found.get(name, 0.0) + float(match[2])
    return found


async def increase_since(before: Counters, base_url: str, api_key: str | None) -> dict[str, int]:
    """What a load that has just ended has added. Waits until the server's processes have told each other, if it counts at all.

    A counter that fell belongs to a server that was started anew, and tells nothing.
    """
    if not before:
        return {}
    await asyncio.sleep(_SETTLING_S)
    after = await read(base_url, api_key)
    return {name: round(after[name] - count) for name, count in before.items() if after.get(name, -1.0) >= count}

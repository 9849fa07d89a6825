"""Asks the server through its own port whether it is ready, as any client would, and says how to try it."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlsplit

POLL_INTERVAL_S = 0.1
ANSWER_TIMEOUT_S = 10.0
LONGEST_ANSWER_BYTES = 1 << 20


async def get(url: str, *, api_key: str | None = None) -> tuple[int, bytes]:
    """Status and body of a GET over HTTP/1.0, which is answered in one piece; raises OSError when there is no such answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        lines = [f"GET {parts.path} HTTP/1.0", f"Host: {parts.netloc}"]
        if api_key is not None:
            lines.append(f"Authorization: Bearer {api_key}")
        writer.write("\r\n".join([*lines, "", ""]).encode())
        answer = bytearray()
        while (chunk := await reader.read(1 << 16)) and len(answer) < LONGEST_ANSWER_BYTES:
            answer += chunk
    finally:
        writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if not head.startswith(b"HTTP/1.") or not status or not status[0].isdigit():
        raise ConnectionError(f"no HTTP answer from {url}")
    return int(status[0]), body


async def is_ready(server_url: str) -> bool:
    """Whether /readyz says 200; a server that does not answer is not ready."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            status, _ = await get(f"{server_url}/readyz")
    except OSError:  # TimeoutError is one
        return False
    return status == 200


async def wait_for(server_url: str, *, ready: bool) -> None:
    """Returns when the server is ready, or is not."""
    while await is_ready(server_url) != ready:
        await asyncio.sleep(POLL_INTERVAL_S)


async def model_names(server_url: str, api_key: str | None) -> list[str]:
    """The names clients may ask for, as /v1/models tells them; empty when it does not."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            status, body = await get(f"{server_url}/v1/models", api_key=api_key)
        return [str(model["id"]) for model in json.loads(body)["data"]] if status == 200 else []
    except (OSError, ValueError, LookupError, TypeError):
        return []


def how_to_try(server_url: str, names: list[str], *, needs_key: bool) -> list[str]:
    """Lines for whoever has just started the server."""
    name = names[0] if names else "penstock"
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello!"}]})
    header = ' -H "Authorization: Bearer $PENSTOCK_API_KEY"' if needs_key else ""
    key = 'os.environ["PENSTOCK_API_KEY"]' if needs_key else '"none"'
    return [
        f"serving {', '.join(names) or 'the model'} at {server_url}",
        f"  curl {server_url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'",
        f'  OpenAI(base_url="{server_url}/v1", api_key={key})',
    ]

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from penstock.readiness import get, how_to_try, is_ready, model_names, wait_for

Answer = Callable[[str], bytes]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A server that answers a request's head with the bytes that `answer` gives, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(head.decode()))
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    async with listening:
        yield f"http://{host}:{port}"


def http(status: int, body: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def test_ready_is_what_readyz_answers_with_200() -> None:
    for status in (200, 404, 500, 503):
        async with server(lambda head, status=status: http(status if head.startswith("GET /readyz ") else 200)) as url:  # type: ignore[misc]
            assert await is_ready(url) == (status == 200)


async def test_a_server_that_is_away_or_talks_nonsense_is_not_ready() -> None:
    async with server(lambda head: b"") as url:
        assert not await is_ready(url)
    assert not await is_ready(url)
    async with server(lambda head: b"SSH-2.0-OpenSSH\r\n\r\n") as url:
        with pytest.raises(ConnectionError):
            await get(f"{url}/readyz")


async def test_waiting_ends_when_the_server_becomes_ready() -> None:
    answers = iter([503, 503, 200])
    async with server(lambda head: http(next(answers))) as url:
        await wait_for(url, ready=True)
    assert list(answers) == []


async def test_model_names_are_asked_for_with_the_key() -> None:
    def answer(head: str) -> bytes:
        return http(200, '{"data": [{"id": "a"}, {"id": "b"}]}') if "Authorization: Bearer secret\r\n" in head else http(401)

    async with server(answer) as url:
        assert await model_names(url, "secret") == ["a", "b"]
        assert await model_names(url, None) == []
    async with server(lambda head: http(200, "[1]")) as url:
        assert await model_names(url, None) == []


def test_the_key_is_never_printed() -> None:
    lines = "\n".join(how_to_try("http://127.0.0.1:1", ["m"], needs_key=True))
    assert "Bearer $PENSTOCK_API_KEY" in lines
    assert '"model": "m"' in lines

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from penstock.frontend import body_limit
from penstock.frontend.body_limit import BodyLimit
from penstock.frontend.errors import RequestTimeout
from tests.frontend.harness import Frontend, error_of, running_frontend

LIMIT = 1000
CHAT = "/v1/chat/completions"


@pytest.fixture
async def small(toy_model_dir: Path) -> AsyncIterator[Frontend]:
    async with running_frontend(toy_model_dir, max_body_bytes=LIMIT) as frontend:
        yield frontend


def scope_of(**headers: str) -> Scope:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json"), *raw]}


async def test_a_body_announced_too_long_is_refused_before_it_is_read() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the application must not be reached")

    async def receive() -> Message:
        raise AssertionError("the body must not be read")

    async def send(message: Message) -> None:
        sent.append(message)

    await BodyLimit(app, LIMIT)(scope_of(content_length=str(300 << 20)), receive, send)
    assert sent[0]["status"] == 413


async def test_a_body_that_is_just_short_enough_is_taken(small: Frontend) -> None:
    body = b'{"prompt": "x"}'.ljust(LIMIT)
    assert (await small.post("/v1/completions", content=body)).status_code == 200
    too_long = await small.post("/v1/completions", content=body + b" ")
    assert too_long.status_code == 413
    assert str(LIMIT) in error_of(too_long)["message"]


async def test_a_chunked_body_is_refused_when_the_limit_is_passed(small: Frontend) -> None:
    pieces_taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces_taken
        while pieces_taken < 1000:
            pieces_taken += 1
            yield b" " * 100

    response = await small.post(CHAT, content=endless())
    assert response.status_code == 413
    error_of(response)
    assert pieces_taken < 20


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
async def test_compressed_bodies_are_refused(small: Frontend, encoding: str) -> None:
    response = await small.post(CHAT, content=b"\x1f\x8b", headers={"Content-Encoding": encoding})
    assert response.status_code == 415
    error_of(response)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_body_that_is_not_announced_as_json_is_refused(small: Frontend, media_type: str) -> None:
    response = await small.post(CHAT, content=b"{}", headers={"Content-Type": media_type})
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


async def test_json_with_a_charset_is_taken(small: Frontend) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert (await small.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers)).status_code == 200


@pytest.mark.parametrize("length", ["x", "-1", "1e3"])
async def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the application must not be reached")

    async def receive() -> Message:
        raise AssertionError("the body must not be read")

    async def send(message: Message) -> None:
        sent.append(message)

    await BodyLimit(app, LIMIT)(scope_of(content_length=length), receive, send)
    assert sent[0]["status"] == 400


async def test_huge_headers_are_refused(small: Frontend) -> None:
    response = await small.http.get("/v1/models", headers={"X-Padding": "x" * (70 << 10)})
    assert response.status_code == 431
    error_of(response)


async def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(body_limit, "BODY_PAUSE_LIMIT_S", 0.05)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits so long")

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    with pytest.raises(RequestTimeout):
        await BodyLimit(app, LIMIT)(scope_of(), receive, send)

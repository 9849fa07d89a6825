"""Clients that go away or do not read, over real TCP connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from penstock.frontend import http_protocol, sse
from penstock.frontend.app import create_app
from penstock.frontend.http_protocol import BoundedHttpProtocol
from penstock.ipc.messages import Submit
from tests.frontend.fake_engine import FakeEngine, never_finish
from tests.frontend.harness import Frontend, running_frontend, until

LIMIT_S = 1.0


@contextlib.asynccontextmanager
async def listening(frontend: Frontend) -> AsyncIterator[int]:
    """The frontend's application on a port."""
    app = create_app(frontend.service.config, frontend.service)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BoundedHttpProtocol, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    yield int(listener.getsockname()[1])
    server.should_exit = True
    server.force_exit = True
    await serving


def post(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    content = json.dumps({"messages": [{"role": "user", "content": "hi"}], **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def aborted_within(frontend: Frontend, ids: list[int], limit_s: float) -> None:
    start = time.monotonic()
    await until(lambda: sorted(frontend.engine.aborted_ids) == ids)
    assert time.monotonic() - start < limit_s
    assert frontend.service.client._open == {}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "close"])
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "waiting"])
async def test_a_client_that_goes_away_is_aborted_at_once(frontend: Frontend, stream: bool, reset: bool, begun: bool) -> None:
    frontend.engine.script = never_finish if begun else (lambda engine, identity, submit: None)
    async with listening(frontend) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post({"stream": stream, "n": 2}))
        await until(lambda: len(frontend.engine.submits) == 2)
        if stream and begun:
            await asyncio.wait_for(reader.readuntil(b'"He"'), 5)
        if reset:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort() if reset else writer.close()
        await aborted_within(frontend, [1, 2], LIMIT_S)


async def test_a_client_that_leaves_early_costs_the_others_nothing(frontend: Frontend) -> None:
    frontend.engine.delay_s = 0.01
    async with listening(frontend) as port:
        _, leaving = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        leaving.write(post({"stream": True}))
        writer.write(post({"stream": True}))
        leaving.close()
        text = (await asyncio.wait_for(reader.readuntil(b"[DONE]"), 10)).decode()
        writer.close()
    pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == "Hello, world!"


async def test_a_client_that_never_reads_is_given_up(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STALL_LIMIT_S", 0.3)

    def flood(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        for position in range(0, 8_000_000, 400_000):
            engine.send(identity, engine.outputs(submit.request_id, position, [65] * 400_000))
            time.sleep(0.01)

    frontend.engine.script = flood
    async with listening(frontend) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(post({"stream": True}))
            await until(lambda: frontend.engine.aborted_ids == [1], timeout_s=20)
            assert frontend.service.client._open == {}


async def test_a_300_mb_body_is_refused_without_being_kept(frontend: Frontend) -> None:
    async with listening(frontend) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 314572800\r\n\r\n{")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 413")
        writer.close()


async def test_a_head_without_end_is_cut_off(frontend: Frontend) -> None:
    async with listening(frontend) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"x" * (64 << 10))
                await asyncio.wait_for(writer.drain(), 5)
        with contextlib.suppress(ConnectionError):
            assert (await asyncio.wait_for(reader.read(), 5))[:12] in (b"HTTP/1.1 431", b"")
        writer.close()


async def test_the_frontend_serves_on_a_real_port(toy_model_dir: Path) -> None:
    async with running_frontend(toy_model_dir) as frontend, listening(frontend) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post({}))
        answer = await asyncio.wait_for(reader.readuntil(b"Hello, world!"), 5)
        assert answer.startswith(b"HTTP/1.1 200")
        writer.close()


async def test_the_synchronous_openai_client_streams(frontend: Frontend) -> None:
    def read(port: int) -> str:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="toy", messages=[{"role": "user", "content": "hi"}], stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    async with listening(frontend) as port:
        assert await asyncio.to_thread(read, port) == "Hello, world!"


async def test_a_head_that_takes_too_long_is_cut_off(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    async with listening(frontend) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post({}))
        await asyncio.wait_for(reader.readuntil(b"Hello, world!"), 5)
        await asyncio.sleep(0.4)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"200 OK"), 5)
        writer.write(b"GET /livez HTTP/1.1\r\n")
        await asyncio.wait_for(reader.read(), 5)
        writer.close()

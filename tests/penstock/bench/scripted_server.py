"""A server that behaves as the name of the asked model says, well or badly, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

TOKEN_INTERVAL_S = 0.002
CACHED_TOKENS = 5


@dataclass
class ScriptedServer:
    """What it has seen, for tests to look at."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    num_connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    metrics: str = ""
    """What /metrics says; nothing: there is none."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests until the client goes, or the script closes it."""
        self.num_connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def end_connections(self) -> None:
        """Closes what is open, and waits until it is."""
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.sleep(0.001)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.headers.append(head)
        length = next(int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length"))
        body = await reader.readexactly(length)
        if head.startswith("GET /metrics "):
            _send(writer, 200, self.metrics) if self.metrics else _send(writer, 404, "{}")
            return True
        if head.startswith("GET"):
            _send(writer, 200, json.dumps({"data": [{"id": "fine"}]}))
            return True
        request = json.loads(body)
        self.bodies.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await _follow_script(request, "chat" in head.split()[1], writer)
        finally:
            self.in_flight -= 1


async def _follow_script(request: dict[str, Any], is_chat: bool, writer: asyncio.StreamWriter) -> bool:
    script = request["model"]
    if script == "silent":
        await asyncio.sleep(60)
    if script == "500":
        _send(writer, 500, json.dumps({"error": {"message": "it is on fire"}}))
        return True
    if not request.get("stream") or script == "no-stream":
        _send(writer, 200, json.dumps({"usage": _usage(request, 1), "choices": []}))
        return True
    if script == "not-http":
        writer.write(b"220 mail.example.org ESMTP\r\n")
        return False
    length = request["max_tokens"]
    framing = "Connection: close" if script == "unframed" else "Transfer-Encoding: chunked"
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n".encode())

    def event(data: str) -> None:
        text = f": a comment\r\ndata: {data}\r\n\r\n".encode() if script == "crlf" else f"data: {data}\n\n".encode()
        writer.write(text if script == "unframed" else b"%x\r\n%s\r\n" % (len(text), text))

    for done in range(0, length, step := 3 if script == "several" else 1):
        if done == length // 2 and script == "dies":
            writer.transport.abort()
            return False
        if done == length // 2 and script == "error-event":
            event('{"error": {"message": "out of luck"}}')
            return False
        event("{nonsense" if script == "nonsense" else _token(is_chat, first=done == 0, last=done + step >= length))
        await asyncio.sleep(TOKEN_INTERVAL_S)
    if (request.get("stream_options") or {}).get("include_usage") and script != "no-usage":
        event(json.dumps({"choices": [], "usage": _usage(request, length)}))
    event("[DONE]")
    if script != "unframed":
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    return bool(script != "unframed")


def _token(is_chat: bool, *, first: bool, last: bool) -> str:
    finish = "length" if last else None
    if not is_chat:
        return json.dumps({"choices": [{"index": 0, "text": "ab", "finish_reason": finish}]})
    role = json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    content = json.dumps(
        {"choices": [{"index": 0, "delta": {"content": "ab"}, "finish_reason": finish}]}, separators=(",", ":")
    )
    return f"{role}\n\ndata: {content}" if first else content


def _usage(request: dict[str, Any], num_output: int) -> dict[str, Any]:
    prompt = request.get("prompt")
    texts = [message["content"] for message in request.get("messages", [])]
    num_input = len(prompt) if prompt is not None else 7 + 2 * sum(len(text.split()) for text in texts)
    details = {"cached_tokens": CACHED_TOKENS if len(texts) > 2 else 0}
    return {"prompt_tokens": num_input, "completion_tokens": num_output, "prompt_tokens_details": details}


def _send(writer: asyncio.StreamWriter, status: int, body: str) -> None:
    writer.write(f"HTTP/1.1 {status} Something\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


@contextlib.asynccontextmanager
async def scripted_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    """The server on the running loop."""
    scripted = ScriptedServer()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=tls)
    scripted.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield scripted
    finally:
        server.close()
        await scripted.end_connections()


@contextlib.contextmanager
def scripted_server_in_thread() -> Iterator[ScriptedServer]:
    """The server beside a test that runs an event loop of its own."""
    started: threading.Event = threading.Event()
    found: list[ScriptedServer] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with scripted_server() as server:
            found.append(server)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()

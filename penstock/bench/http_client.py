"""A small HTTP/1.1 client on asyncio transports: cheap per received chunk, connections kept alive, TLS for https.

A body's pieces are handed over as they are received, with the time of their arrival; nothing is queued and no task wakes up
before an answer is complete.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

_PORTS = {"http": 80, "https": 443}

Sink = Callable[[float, bytes], None]
"""Takes the time (CLOCK_MONOTONIC) and a piece of the body. Must not raise."""


class HttpError(Exception):
    """No whole answer came."""


class ConnectionLost(HttpError):
    """The connection ended before the answer did."""

    def __init__(self, received_anything: bool, cause: Exception | None) -> None:
        when = "in the middle of the answer" if received_anything else "before an answer came"
        super().__init__(f"the connection was closed {when}" + (f" ({cause})" if cause else ""))
        self.received_anything = received_anything


@dataclass(slots=True)
class _Exchange:
    sink: Sink
    status: asyncio.Future[int]
    received_anything: bool = False
    is_framed: bool = False
    has_headers: bool = False


class _Connection(asyncio.Protocol):
    """One connection, with at most one exchange at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: _Exchange | None = None
        self._transport: asyncio.Transport | None = None
        self._now = 0.0
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        if self._exchange is not None:
            self._exchange.received_anything = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(HttpError(f"the server does not speak HTTP/1.1: {error}"))
            self.close()

    def connection_lost(self, cause: Exception | None) -> None:
        self.is_open = False
        exchange = self._exchange
        if exchange is not None and exchange.has_headers and not exchange.is_framed and cause is None:
            self._complete()  # a body without a length ends with the connection
        else:
            self._fail(ConnectionLost(exchange is not None and exchange.received_anything, cause))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None and name.lower() in (b"content-length", b"transfer-encoding"):
            self._exchange.is_framed = True

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.has_headers = True

    def on_body(self, piece: bytes) -> None:
        if self._exchange is not None:
            self._exchange.sink(self._now, piece)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._complete()

    async def exchange(self, request: bytes, sink: Sink) -> int:
        """Sends a request and returns the answer's status when all of its body went to `sink`; raises HttpError."""
        assert self._transport is not None
        self._exchange = _Exchange(sink, asyncio.get_running_loop().create_future())
        self._transport.write(request)
        try:
            return await self._exchange.status
        finally:
            self._exchange = None

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _complete(self) -> None:
        if self._exchange is not None and not self._exchange.status.done():
            self._exchange.status.set_result(self._parser.get_status_code())

    def _fail(self, error: HttpError) -> None:
        if self._exchange is not None and not self._exchange.status.done():
            self._exchange.status.set_exception(error)


class HttpClient:
    """Requests to one server. Each takes a connection that is free, or opens another."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or _PORTS[parts.scheme]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"Host: {host}:{self._port}", "User-Agent: penstock-bench", "Accept: */*", "Content-Type: application/json"]
        if api_key:
            lines.append(f"Authorization: Bearer {api_key}")
        self._headers = "".join(f"{line}\r\n" for line in lines).encode()
        self._free: list[_Connection] = []

    async def send(self, method: str, route: str, body: bytes, sink: Sink) -> int:
        """One request below the base address; returns the status. Raises HttpError or OSError (no connection)."""
        line = f"{method} {self._path}{route} HTTP/1.1\r\n".encode()
        request = b"%s%sContent-Length: %d\r\n\r\n%s" % (line, self._headers, len(body), body)
        while (connection := self._take_free()) is not None:
            try:
                return await self._exchange(connection, request, sink)
            except ConnectionLost as lost:
                if lost.received_anything:
                    raise
                # else the server closed it just before it was used again
        return await self._exchange(await self._connect(), request, sink)

    def close(self) -> None:
        for connection in self._free:
            connection.close()

    async def _exchange(self, connection: _Connection, request: bytes, sink: Sink) -> int:
        try:
            status = await connection.exchange(request, sink)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._free.append(connection)
        return status

    def _take_free(self) -> _Connection | None:
        while self._free:
            if (connection := self._free.pop()).is_open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port, ssl=self._tls)
        return connection

"""uvicorn's HTTP protocol with bounds on a request's head, which httptools lets grow, and dawdle, without end.

It offers applications a `DirectWriter`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .direct_writer import offer_direct_writer

MAX_HEAD_BYTES = 64 << 10
HEAD_TIMEOUT_S = 30.0

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers pass MAX_HEAD_BYTES or take longer than HEAD_TIMEOUT_S.

    Between two requests uvicorn's keep-alive timeout holds.
    """

    _num_head_bytes = 0
    _is_in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, *, on_lost: Callable[[asyncio.BaseProtocol], None] = lambda _: None, **uvicorns: Any) -> None:
        """`on_lost` is called with this protocol when its connection is gone; the rest is uvicorn's."""
        super().__init__(**uvicorns)
        self._on_lost = on_lost

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            # Counts as head what of this piece is body already, at most one read of the transport.
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._num_head_bytes = 0
        self._start_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_timer()
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            offer_direct_writer(self.cycle)

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

"""uvicorn's HTTP protocol with a bound on a request's head, which httptools lets grow without end."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
HEAD_TIMEOUT_S = 30.0

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers are over MAX_HEAD_BYTES or not complete after HEAD_TIMEOUT_S."""

    _num_head_bytes = 0
    _is_in_head = True

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.loop.call_later(HEAD_TIMEOUT_S, self._check_first_head)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            # What of this piece is body is at most one read of the transport.
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._num_head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def _check_first_head(self) -> None:
        if self._is_in_head and not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

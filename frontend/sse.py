"""Server-sent events: framing, and a response that gives its generation up whatever becomes of the client.

A stream ends with `data: [DONE]`, or with an error event and nothing after it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

PING_INTERVAL_S = 15
STALL_LIMIT_S = 60.0
"""A client that takes nothing for this long is given up."""
DONE = b"data: [DONE]\n\n"

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_log = logging.getLogger(__name__)


def event(data: dict[str, Any]) -> bytes:
    """One event with JSON data."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class StreamResponse(EventSourceResponse):
    """The answer to a streaming request. `close` runs at the end in any case, also if the stream was never begun.

    At SIGTERM open streams go on for `grace_s`.
    """

    def __init__(self, events: AsyncIterator[bytes], *, close: Callable[[], None], grace_s: float) -> None:
        super().__init__(
            events,
            headers=_HEADERS,
            ping=PING_INTERVAL_S,
            sep="\n",
            send_timeout=STALL_LIMIT_S,
            shutdown_event=anyio.Event(),
            shutdown_grace_period=grace_s,
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            _log.warning("gave up a client that took nothing for %.0f s", STALL_LIMIT_S)
        finally:
            self._close()

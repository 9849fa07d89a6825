"""A door past ASGI for one response's body: bytes go to the connection at once, without an await between.

`send` of ASGI is a coroutine, so a token that has to pass through it costs the wake-up of a task. What is written here
continues a chunked body that `send` has begun, and `send` may go on with it at any time.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_EXTENSION = "penstock.direct_writer"
_WRITER = "writer"


class DirectWriter:
    """Writes to one response under uvicorn."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport = cycle.transport
        self._flow = cycle.flow

    @property
    def takes_more(self) -> bool:
        """The client is there and has not fallen behind. To be asked between the body's begin and end."""
        return not (self._flow.write_paused or self._cycle.disconnected or self._transport.is_closing())

    def write(self, body: bytes) -> None:
        """The next bytes of the body, at least one; only while `takes_more`."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))


def offer_direct_writer(cycle: RequestResponseCycle) -> None:
    """Leaves a writer in the request's scope, before the application sees it."""
    cycle.scope.setdefault("extensions", {})[_EXTENSION] = {_WRITER: DirectWriter(cycle)}


def direct_writer(scope: MutableMapping[str, Any]) -> DirectWriter | None:
    """What this request's server offers; None under a server that knows ASGI alone."""
    writer: DirectWriter | None = scope.get("extensions", {}).get(_EXTENSION, {}).get(_WRITER)
    return writer

"""Takes connections off a listening socket that several frontends share, so that each holds its part of them.

Every frontend is woken by every connection, and left to themselves one or two take most of them. So a frontend that holds more
than another one, by more than an eighth, lets the other one take the next; so does one that is not ready, while another one is.
Nobody waits for long: who has let a connection wait for PATIENCE_S, being busy, hung or dead, is left out of account until
its figures move.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable

from .board import Entry, Place, Presence

MOST_AT_ONCE = 32
"""Connections taken before the event loop turns to other things."""
PATIENCE_S = 0.01
LOOK_AGAIN_S = 0.001
SLACK_DIVISOR = 8
"""A frontend may be ahead by its own number of connections divided by this."""
PAUSE_S = 1.0
"""After an error of accept, such as too many open files."""

_log = logging.getLogger(__name__)


class Acceptor:
    """Accepts until closed. Belongs to one event loop."""

    def __init__(self, listener: socket.socket, place: Place, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        """`listener` does not block and stays the caller's. A protocol says by `release` that its connection is lost."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._place = place
        self._make_protocol = make_protocol
        self._waiting = select.poll()
        self._waiting.register(listener, select.POLLIN)
        self._deferrals: dict[int, tuple[Entry, float]] = {}  # whom it gives way to, by number, and since when
        self._timer: asyncio.TimerHandle | None = None
        self._held: set[asyncio.BaseProtocol] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Takes no more connections; those it has go on."""
        if not self._is_closed:
            self._is_closed = True
            self._pause(None)

    async def wait_closed(self) -> None:
        """Until connections that were being opened are open."""
        await asyncio.gather(*self._opening)

    def release(self, protocol: asyncio.BaseProtocol) -> None:
        """A connection is no longer held."""
        self._held.discard(protocol)
        self._place.show_connections(len(self._held))

    def _accept(self) -> None:
        for _ in range(MOST_AT_ONCE):
            if self._defers():
                self._pause(LOOK_AGAIN_S)
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                self._nothing_waits()
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                _log.error("no connection can be accepted: %s", error.strerror)
                self._pause(PAUSE_S)
                return
            self._open(connection)

    def _defers(self) -> bool:
        """Whether somebody else should take the next connection, and still may."""
        now_s = self._loop.time()
        ahead = self._better_placed()
        self._deferrals = {
            number: self._deferrals[number]
            if number in self._deferrals and self._deferrals[number][0] == entry
            else (entry, now_s)
            for number, entry in ahead.items()
        }
        return any(now_s - since_s < PATIENCE_S for _, since_s in self._deferrals.values())

    def _better_placed(self) -> dict[int, Entry]:
        mine, others = self._place.mine, self._place.others()
        ready = {number: entry for number, entry in others.items() if entry.presence == Presence.READY}
        if mine.presence != Presence.READY and ready:
            return ready
        rivals = ready if mine.presence == Presence.READY else others
        fair = mine.num_connections - mine.num_connections // SLACK_DIVISOR
        return {number: entry for number, entry in rivals.items() if entry.num_connections < fair}

    def _pause(self, seconds: float | None) -> None:
        """Does not look at the listener for so long, or ever again."""
        self._loop.remove_reader(self._listener)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener, self._accept)
        if self._waiting.poll(0):
            self._accept()
        else:
            self._nothing_waits()

    def _nothing_waits(self) -> None:
        """Somebody has taken it: only those who let an earlier connection wait too long stay left out."""
        now_s = self._loop.time()
        self._deferrals = {
            number: deferral for number, deferral in self._deferrals.items() if now_s - deferral[1] >= PATIENCE_S
        }

    def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        protocol = self._make_protocol()
        self._held.add(protocol)
        self._place.show_connections(len(self._held))
        task = self._loop.create_task(self._connect(connection, protocol))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()
            self.release(protocol)
        else:
            if self._is_closed:
                transport.close()

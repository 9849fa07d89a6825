"""The connection itself: handshake, heartbeats, and telling when the engine is gone.

The engine is connected from its Ready until its socket closes, another engine answers (a new boot id) or it was silent for
SILENCE_LIMIT_S; then `on_lost` is called and Hello repeated until the next Ready. A long step looks like silence (the
engine's heartbeats come between steps), so `is_ready` flips much earlier than the connection is given up.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from ..ipc import messages
from ..ipc.codec import ProtocolError
from ..ipc.messages import HEARTBEAT_INTERVAL_S, LEASE_TIMEOUT_S, PROTOCOL_VERSION, Ready
from ..ipc.sockets import FrontendSocket, SlowPeer

SILENCE_LIMIT_S = 30.0
"""An engine that says nothing for this long is given up, whatever it may be computing."""

MAX_MESSAGES_AT_ONCE = 16
"""A frontend that has fallen behind takes as many messages before it writes: their tokens become one event."""
_GOODBYE_S = 0.05
_GREETING_TRIES = 20
_GREETING_PAUSE_S = 0.02
_log = logging.getLogger(__name__)


class ModelUnusable(Exception):
    """The engine's model cannot be served by this frontend; the message says why."""


class LinkUser(Protocol):
    """Whom the link tells what happens."""

    async def on_ready(self, facts: Ready) -> None:
        """An engine has answered; the link has facts once this returns. Raises ModelUnusable."""

    def on_message(self, message: messages.Outputs | messages.Rejected | messages.Stats) -> None:
        """Something from the connected engine."""

    def on_messages_taken(self) -> None:
        """No further message waits, or many were taken already."""

    def on_lost(self, reason: str) -> None:
        """Whatever the engine still owed will not come."""

    async def on_tick(self) -> None:
        """Once every HEARTBEAT_INTERVAL_S."""


class EngineLink:
    """One frontend's two sockets. Belongs to one event loop; `start` and `close` run in it."""

    def __init__(self, socket_dir: Path, name: str, heartbeat: Callable[[], messages.Heartbeat], user: LinkUser) -> None:
        self._socket_dir = socket_dir
        self._name = name
        self._heartbeat = heartbeat
        self._user = user
        self._boot_id: bytes | None = None
        self._step_age_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.facts: Ready | None = None
        """What the connected engine said of its model, once `on_ready` is through with it."""

    async def start(self) -> None:
        """Connects and begins to say Hello; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._last_heard_s = self._loop.time()
        self._context = zmq.asyncio.Context()
        identity = f"{self._name}:{os.urandom(8).hex()}".encode()
        self._data = FrontendSocket(self._context, self._socket_dir, "data", identity)
        self._control = FrontendSocket(self._context, self._socket_dir, "control", identity)
        self._monitor = self._data.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        for work in (self._receive(self._data), self._receive(self._control), self._watch_connection(), self._tick()):
            self.spawn(work)

    async def close(self) -> None:
        """Says Goodbye and lets go of the sockets."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.send_control(messages.Goodbye())
        await asyncio.sleep(_GOODBYE_S)  # LINGER is 0: leaves the Goodbye a moment to go out
        self._data.socket.disable_monitor()
        self._monitor.close(0)
        self._data.close()
        self._control.close()
        self._context.term()

    @property
    def stall_s(self) -> float:
        """How long nothing was heard of the engine, or its steps do not advance although there is work."""
        return max(self._loop.time() - self._last_heard_s, self._step_age_s)

    @property
    def is_ready(self) -> bool:
        """The engine is connected and its steps advance."""
        return self.facts is not None and self.stall_s <= LEASE_TIMEOUT_S

    async def send_data(self, message: messages.Hello | messages.Submit) -> bool:
        """False: the engine is away or its queue is full."""
        return await _send(self._data, message)

    async def send_control(
        self, message: messages.Heartbeat | messages.Abort | messages.StatsRequest | messages.Goodbye
    ) -> bool:
        """False: the engine is away or its queue is full."""
        return await _send(self._control, message)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs work beside everything else, until `close` at most."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        last_tick_s = self._loop.time()
        while True:
            now_s = self._loop.time()
            # After a pause of this process itself the engine's messages wait unread: that is not the engine's silence.
            was_paused = now_s - last_tick_s > 2 * HEARTBEAT_INTERVAL_S
            last_tick_s = now_s
            silence_s = now_s - self._last_heard_s
            if silence_s > SILENCE_LIMIT_S and not was_paused and self._boot_id is not None:
                self._lose(f"the engine was silent for {SILENCE_LIMIT_S:.0f} s")
            if self._boot_id is None or silence_s > LEASE_TIMEOUT_S:
                await self.send_data(messages.Hello(PROTOCOL_VERSION))
            await self.send_control(self._heartbeat())
            await self._user.on_tick()
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def _watch_connection(self) -> None:
        while True:
            happened = parse_monitor_message(await self._monitor.recv_multipart())["event"]
            if happened == zmq.EVENT_DISCONNECTED:
                self._lose("the engine's process ended")
            else:
                self.spawn(self._greet())

    async def _greet(self) -> None:
        """Says Hello as soon as the socket takes it, which may be a moment after the handshake."""
        for _ in range(_GREETING_TRIES):
            if await self.send_data(messages.Hello(PROTOCOL_VERSION)):
                return
            await asyncio.sleep(_GREETING_PAUSE_S)

    async def _receive(self, socket: FrontendSocket) -> None:
        while True:
            try:
                message: messages.ToFrontend | messages.ToEngine | None = await socket.receive()
                num_taken = 0
                while message is not None:
                    num_taken += 1
                    self._last_heard_s = self._loop.time()
                    self._dispatch(message)
                    message = socket.receive_waiting() if num_taken < MAX_MESSAGES_AT_ONCE else None
                self._user.on_messages_taken()
                await asyncio.sleep(0)  # receiving does not wait while messages do, and what was written must go out
            except ProtocolError as error:
                _log.error("the engine sent something unreadable: %s", error)
                self._user.on_lost("the engine sent something unreadable")
            except Exception:
                _log.exception("a message of the engine could not be handled")
                self._user.on_lost("a message of the engine could not be handled")

    def _dispatch(self, message: messages.ToFrontend | messages.ToEngine) -> None:
        if isinstance(message, messages.Outputs):
            if self._is_current(message.engine_boot_id):
                self._user.on_message(message)
        elif isinstance(message, messages.EngineHeartbeat):
            if self._is_current(message.engine_boot_id):
                self._step_age_s = message.step_age_s
        elif isinstance(message, Ready):
            self._take_ready(message)
        elif isinstance(message, (messages.Rejected, messages.Stats)):
            self._user.on_message(message)
        else:
            raise ProtocolError(f"{type(message).__name__} does not go to frontends")

    def _is_current(self, boot_id: bytes) -> bool:
        """False for a message of an engine that has not greeted us; one we did not know of means that ours is gone."""
        if boot_id != self._boot_id and self._boot_id is not None:
            self._lose("the engine was restarted")
        return boot_id == self._boot_id

    def _lose(self, reason: str) -> None:
        if self._boot_id is not None:
            _log.error("lost the engine: %s", reason)
        self.facts = None
        self._boot_id = None
        self._step_age_s = 0.0
        self._user.on_lost(reason)

    def _take_ready(self, ready: Ready) -> None:
        if ready.protocol_version != PROTOCOL_VERSION:
            _log.error("the engine speaks protocol %d, this frontend %d", ready.protocol_version, PROTOCOL_VERSION)
        elif not self._is_current(ready.engine_boot_id):
            self._boot_id = ready.engine_boot_id
            self.spawn(self._prepare(ready))

    async def _prepare(self, ready: Ready) -> None:
        try:
            await self._user.on_ready(ready)
        except ModelUnusable as error:
            _log.error("%s", error)
            return
        if self._boot_id == ready.engine_boot_id:
            self.facts = ready
            _log.info("engine ready: %s on %s", ready.served_model_names[0], ready.device)


async def _send(socket: FrontendSocket, message: messages.ToEngine) -> bool:
    try:
        await socket.send(message)
    except SlowPeer:
        return False
    return True

"""This frontend's connection to the engine: handshake, heartbeats, submitting, aborting, and telling when the engine is gone.

The engine is connected from its Ready until its socket closes, another engine answers (a new boot id) or it was silent for
SILENCE_LIMIT_S; then every open request fails and Hello is repeated until the next Ready. A long step looks like
silence (the engine's heartbeats come between steps), so `is_ready` flips much earlier than requests are given up.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import zmq
import zmq.asyncio

from ..ipc import messages
from ..ipc.codec import ProtocolError
from ..ipc.messages import HEARTBEAT_INTERVAL_S, LEASE_TIMEOUT_S, PROTOCOL_VERSION, Ready, RejectReason
from ..ipc.sockets import FrontendSocket, SlowPeer
from .open_requests import (
    EngineUnavailable,
    NewRequest,
    OpenRequest,
    RequestFailed,
    RequestRejected,
    RequestStream,
    int32s,
)

SILENCE_LIMIT_S = 30.0
"""An engine that says nothing for this long is given up, whatever it may be computing."""
STATS_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


class EngineClient:
    """One frontend's side of the protocol. Belongs to one event loop; `start` and `close` run in it."""

    def __init__(
        self,
        socket_dir: Path,
        name: str,
        *,
        on_ready: Callable[[Ready], Awaitable[None]],
        http_responses: Mapping[str, int],
    ) -> None:
        self._socket_dir = socket_dir
        self._name = name
        self._on_ready = on_ready
        self._http_responses = http_responses
        self._facts: Ready | None = None
        self._greeted_boot_id: bytes | None = None
        self._step_age_s = 0.0
        self._open: dict[int, OpenRequest] = {}
        self._to_abort: dict[int, None] = {}
        self._request_ids = itertools.count(1)
        self._nonces = itertools.count(1)
        self._stats_waiters: dict[int, asyncio.Future[messages.Stats]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connects and begins to say Hello; returns at once, `is_ready` tells when the engine has answered."""
        self._loop = asyncio.get_running_loop()
        self._last_heard_s = self._loop.time()
        self._context = zmq.asyncio.Context()
        identity = f"{self._name}:{os.urandom(8).hex()}".encode()
        self._data = FrontendSocket(self._context, self._socket_dir, "data", identity)
        self._control = FrontendSocket(self._context, self._socket_dir, "control", identity)
        self._monitor = self._data.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        for loop in (self._receive(self._data), self._receive(self._control), self._watch_connection(), self._tick()):
            self._spawn(loop)

    async def close(self) -> None:
        """Fails what is still open, says Goodbye and lets go of the sockets."""
        self.fail_all("the server is shutting down")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._send(self._control, messages.Goodbye())
        await asyncio.sleep(0.05)  # LINGER is 0: leaves the Goodbye a moment to go out
        self._data.socket.disable_monitor()
        self._monitor.close(0)
        self._data.close()
        self._control.close()
        self._context.term()

    @property
    def facts(self) -> Ready | None:
        """What the connected engine said of its model, once `on_ready` is through with it."""
        return self._facts

    @property
    def is_ready(self) -> bool:
        """The engine is connected and its steps advance."""
        return self._facts is not None and self._stall_s() <= LEASE_TIMEOUT_S

    async def submit(self, requests: Sequence[NewRequest]) -> RequestStream:
        """Submits the requests and returns the stream to read their answers from; its `close` must be called.

        Raises EngineUnavailable when the engine is not there, silent, or does not read.
        """
        if self._facts is None:
            raise EngineUnavailable("the engine is not ready")
        limit_s = SILENCE_LIMIT_S if self._facts.device == "cpu" else LEASE_TIMEOUT_S
        if self._stall_s() > limit_s:
            raise EngineUnavailable("the engine does not answer")
        opened = [OpenRequest(next(self._request_ids), new) for new in requests]
        stream = RequestStream(opened, self._give_up)
        try:
            for request in opened:
                self._open[request.request_id] = request
                await self._data.send(_submit_message(request))
        except SlowPeer as error:
            stream.close()
            raise EngineUnavailable("the engine's queue is full") from error
        except BaseException:
            stream.close()
            raise
        return stream

    def fail_all(self, reason: str) -> None:
        """Ends every open request with an error that invites to try again."""
        for request in list(self._open.values()):
            request.fail(EngineUnavailable(reason))
        self._to_abort.update(dict.fromkeys(self._open))
        self._open.clear()

    async def fetch_stats(self) -> messages.Stats:
        """The whole server's figures; raises EngineUnavailable."""
        nonce = next(self._nonces)
        waiter: asyncio.Future[messages.Stats] = self._loop.create_future()
        self._stats_waiters[nonce] = waiter
        try:
            await self._control.send(messages.StatsRequest(nonce))
            async with asyncio.timeout(STATS_TIMEOUT_S):
                return await waiter
        except (SlowPeer, TimeoutError) as error:
            raise EngineUnavailable("the engine does not answer") from error
        finally:
            del self._stats_waiters[nonce]

    def _give_up(self, requests: Sequence[OpenRequest]) -> None:
        """Aborts those of the requests that are not over. Never waits, so that it may run in any `finally`."""
        for request in requests:
            if self._open.pop(request.request_id, None) is not None and not request.is_over:
                request.is_over = True
                self._to_abort[request.request_id] = None
        if self._to_abort:
            self._spawn(self._flush_aborts())

    async def _flush_aborts(self) -> None:
        if not self._to_abort:
            return
        request_ids = array("i", self._to_abort)
        if await self._send(self._control, messages.Abort(request_ids.tobytes())):
            for request_id in request_ids:
                self._to_abort.pop(request_id, None)

    def _stall_s(self) -> float:
        return max(self._loop.time() - self._last_heard_s, self._step_age_s)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, socket: FrontendSocket, message: messages.ToEngine) -> bool:
        try:
            await socket.send(message)
        except SlowPeer:
            return False
        return True

    async def _tick(self) -> None:
        last_tick_s = self._loop.time()
        while True:
            if self._greeted_boot_id is None:
                await self._send(self._data, messages.Hello(PROTOCOL_VERSION))
            await self._send(self._control, messages.Heartbeat(dict(self._http_responses)))
            await self._flush_aborts()
            now_s = self._loop.time()
            # After a pause of this process itself the engine's messages wait unread: that is not the engine's silence.
            was_paused = now_s - last_tick_s > 2 * HEARTBEAT_INTERVAL_S
            last_tick_s = now_s
            if not was_paused and now_s - self._last_heard_s > SILENCE_LIMIT_S and self._greeted_boot_id is not None:
                self._disconnected(f"the engine was silent for {SILENCE_LIMIT_S:.0f} s")
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def _watch_connection(self) -> None:
        while True:
            await self._monitor.recv_multipart()
            self._disconnected("the engine's process ended")

    def _disconnected(self, reason: str) -> None:
        if self._greeted_boot_id is not None:
            _log.error("%s: %d open requests failed", reason, len(self._open))
        self._facts = None
        self._greeted_boot_id = None
        self._step_age_s = 0.0
        self.fail_all(reason)

    async def _receive(self, socket: FrontendSocket) -> None:
        while True:
            try:
                message = await socket.receive()
                self._last_heard_s = self._loop.time()
                self._dispatch(message)
            except ProtocolError as error:
                _log.error("the engine sent something unreadable: %s", error)
                self.fail_all("the engine sent something unreadable")
            except Exception:
                _log.exception("a message of the engine could not be handled")
                self.fail_all("a message of the engine could not be handled")

    def _dispatch(self, message: messages.ToFrontend | messages.ToEngine) -> None:
        if isinstance(message, messages.Outputs):
            if self._is_current(message.engine_boot_id):
                self._take_outputs(message)
        elif isinstance(message, messages.EngineHeartbeat):
            if self._is_current(message.engine_boot_id):
                self._step_age_s = message.step_age_s
        elif isinstance(message, messages.Rejected):
            self._take_rejected(message)
        elif isinstance(message, messages.Ready):
            self._take_ready(message)
        elif isinstance(message, messages.Stats):
            waiter = self._stats_waiters.get(message.nonce)
            if waiter is not None and not waiter.done():
                waiter.set_result(message)
        else:
            raise ProtocolError(f"{type(message).__name__} does not go to frontends")

    def _is_current(self, boot_id: bytes) -> bool:
        """False for a message of an engine that has not greeted us; one we did not know of means that ours is gone."""
        if boot_id == self._greeted_boot_id:
            return True
        if self._greeted_boot_id is not None:
            self._disconnected("the engine was restarted")
        return False

    def _take_outputs(self, outputs: messages.Outputs) -> None:
        request_ids, positions, counts, token_ids = (
            int32s(data) for data in (outputs.request_ids, outputs.positions, outputs.counts, outputs.token_ids)
        )
        details = {detail.request_id: detail for detail in outputs.details}
        start = 0
        for request_id, position, count, finish in zip(request_ids, positions, counts, outputs.finish_reasons, strict=True):
            request = self._open.get(request_id)
            if request is not None:
                request.extend(position, token_ids[start : start + count], finish, details.get(request_id))
                if request.is_over:
                    del self._open[request_id]
                    if isinstance(request.error, RequestFailed):
                        _log.error("request %d failed: %s", request_id, request.error)
                        self._to_abort[request_id] = None
            start += count

    def _take_rejected(self, rejected: messages.Rejected) -> None:
        request = self._open.pop(rejected.request_id, None)
        if request is not None:
            request.fail(RequestRejected(RejectReason(rejected.reason), rejected.message, rejected.param))

    def _take_ready(self, ready: Ready) -> None:
        if ready.protocol_version != PROTOCOL_VERSION:
            _log.error("the engine speaks protocol %d, this frontend %d", ready.protocol_version, PROTOCOL_VERSION)
            return
        if ready.engine_boot_id == self._greeted_boot_id:
            return
        if self._greeted_boot_id is not None:
            self._disconnected("the engine was restarted")
            self._to_abort.clear()
        self._greeted_boot_id = ready.engine_boot_id
        self._spawn(self._prepare(ready))

    async def _prepare(self, ready: Ready) -> None:
        try:
            await self._on_ready(ready)
        except Exception:
            _log.exception("cannot serve the engine's model")
            return
        if self._greeted_boot_id == ready.engine_boot_id:
            self._facts = ready
            _log.info("engine ready: %s on %s", ready.served_model_names[0], ready.device)


def _submit_message(request: OpenRequest) -> messages.Submit:
    new = request.new
    return messages.Submit(
        request_id=request.request_id,
        token_ids=new.prompt_token_ids.tobytes(),
        num_output_tokens=0,
        sampling=new.sampling,
        priority=new.priority,
        cache_salt=new.cache_salt,
    )

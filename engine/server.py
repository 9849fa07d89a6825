"""The engine's process loop: receive, step, reply.

One thread does everything. While there is work it takes in what has arrived, without waiting, advances the core by one step
and sends what is due, without waiting; without work it sleeps in the poller until a message, a signal or the next heartbeat.
Bytes that are none of the protocol's messages are counted and ignored, whatever they are; a request that is refused or fails
costs only itself. An exception anywhere else ends the process: whoever supervises it starts it again.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from array import array
from collections.abc import Callable
from pathlib import Path

import zmq

from ..ipc import messages
from ..ipc.codec import ProtocolError, decode
from ..ipc.messages import PROTOCOL_VERSION, RejectReason
from ..ipc.sockets import EngineSocket, GonePeer, SlowPeer, check_socket_dir
from .collector import Collector
from .core import EngineCore
from .errors import Refused
from .facts import ModelFacts
from .leases import Lease, Leases
from .outbox import RETRY_INTERVAL_S, Outbox
from .outputs import StepOutputs
from .pulse import Pulse

MAX_FRAMES_PER_STEP = 1000
"""Taken from each socket between two steps; more than the queue of one step needs, few enough that a flood cannot stop the
steps."""
DRAIN_TIMEOUT_S = 30.0
"""What runs may go on for so long after a stop was asked for."""
LINGER_MS = 500

_NOTHING = StepOutputs()


class EngineServer:
    """An EngineCore behind its two sockets in `socket_dir`, which must be private."""

    def __init__(
        self, core: EngineCore, facts: ModelFacts, socket_dir: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        check_socket_dir(socket_dir)
        self._core = core
        self._clock = clock
        self._boot_id = os.urandom(8)
        self._ready = facts.ready(self._boot_id)
        self._metrics = core.scheduler.metrics
        self._leases = Leases(self._boot_id)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._data = EngineSocket(self._context, socket_dir, "data")
        self._control = EngineSocket(self._context, socket_dir, "control")
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller = zmq.Poller()
        for source in (self._data.socket, self._control.socket, self._wake_reader):
            self._poller.register(source, zmq.POLLIN)
        self._pulse = Pulse(core, self._boot_id, clock())
        self._collector = Collector(clock())
        self._was_idle = True
        self._is_stopping = False
        self._is_closed = False
        self._drain_until_s: float | None = None

    def serve(self) -> None:
        """Works until `stop`, then until what runs has finished or DRAIN_TIMEOUT_S are over; closes the sockets."""
        try:
            with self._collector.in_charge():
                while not self._is_drained():
                    self._receive()
                    outputs = self._core.step() if self._core.has_work else _NOTHING
                    self._reply(outputs)
                self._abandon_rest()
        finally:
            self._close()

    def stop(self) -> None:
        """Asks `serve` to drain and return. May be called from a signal handler or another thread."""
        self._is_stopping = True
        if not self._is_closed:
            os.write(self._wake_writer, b"!")

    def _receive(self) -> None:
        if not self._core.has_work:
            self._rest()
        # Aborts first: they never wait behind a long prompt.
        is_drained = self._take_frames(self._control, self._on_control)
        is_drained &= self._take_frames(self._data, self._on_data)
        if is_drained:  # silence counts only once everything that has arrived is read
            for lease in self._leases.silent(self._clock()):
                self._give_up(lease)

    def _rest(self) -> None:
        """Sleeps until there is something to do."""
        if not self._was_idle:
            self._was_idle = True
            self._core.scheduler.blocks.check_idle()
            self._collector.on_idle(self._clock())
        wait_s = max(0.0, self._pulse.next_beat_s - self._clock())
        if any(not lease.outbox.is_empty for lease in self._leases):
            wait_s = min(wait_s, RETRY_INTERVAL_S)
        if self._is_stopping and self._drain_until_s is None:
            wait_s = 0.0
        wait_ms = 0 if self._core.on_idle() else int(wait_s * 1000) + 1
        ready = dict(self._poller.poll(wait_ms))
        if self._wake_reader in ready:
            os.read(self._wake_reader, 64)

    def _take_frames(
        self, socket: EngineSocket, handle: Callable[[bytes, messages.ToEngine | messages.ToFrontend], bool]
    ) -> bool:
        """Hands on what has arrived; whether that was all."""
        for _ in range(MAX_FRAMES_PER_STEP):
            received = socket.receive_bytes()
            if received is None:
                return True
            identity, data = received
            try:
                is_known = handle(identity, decode(data))
            except ProtocolError:
                is_known = False
            self._metrics.num_ignored_frames += not is_known
        return False

    def _on_control(self, identity: bytes, message: messages.ToEngine | messages.ToFrontend) -> bool:
        """Handles a message of the control pair; False when it makes no sense there."""
        lease = self._leases.hear(identity, self._clock())
        if isinstance(message, messages.StatsRequest):
            metrics = self._metrics.export(self._core.scheduler.gauges)
            self._try_send(self._control, identity, messages.Stats(nonce=message.nonce, metrics=metrics))
        elif not isinstance(message, messages.Abort | messages.Heartbeat | messages.Goodbye):
            return False
        elif lease is None:
            return True
        elif isinstance(message, messages.Abort):
            self._abort(lease, message)
        elif isinstance(message, messages.Heartbeat):
            self._metrics.set_frontend_totals(identity, message.http_responses, message.prompt_tokens)
        else:
            lease.has_left = True
            self._give_up(lease)
        return True

    def _on_data(self, identity: bytes, message: messages.ToEngine | messages.ToFrontend) -> bool:
        """Handles a message of the data pair; False when it makes no sense there."""
        now_s = self._clock()
        if isinstance(message, messages.Hello):
            if message.protocol_version == PROTOCOL_VERSION:
                self._leases.greet(identity, now_s)
            self._try_send(self._data, identity, self._ready)
            return True
        lease = self._leases.hear(identity, now_s)
        if not isinstance(message, messages.Submit) or not 0 < message.request_id < 2**31:
            return False
        if lease is None:
            text = "a frontend says Hello before it submits"
            self._try_send(self._data, identity, messages.Rejected(message.request_id, RejectReason.OVERLOADED, text, None))
            return True
        if message.request_id in lease.open_requests:
            return False
        self._submit(lease, message)
        return True

    def _submit(self, lease: Lease, submit: messages.Submit) -> None:
        try:
            if submit.request_id in lease.tombstones:
                raise Refused(RejectReason.ABORTED, "the request was aborted before it arrived")
            if self._is_stopping:
                raise Refused(RejectReason.DRAINING, "the server is shutting down")
            handle = lease.handle(submit.request_id)
            self._core.submit(handle, submit, handle)
            lease.open_requests.add(submit.request_id)
        except Refused as refusal:
            self._metrics.rejected[refusal.reason] += 1
            rejected = messages.Rejected(submit.request_id, refusal.reason, refusal.message, refusal.param)
            lease.outbox.reject(rejected)
        except Exception:
            traceback.print_exc()
            self._metrics.rejected[RejectReason.INVALID] += 1
            rejected = messages.Rejected(submit.request_id, RejectReason.INVALID, "the request cannot be read", None)
            lease.outbox.reject(rejected)

    def _abort(self, lease: Lease, abort: messages.Abort) -> None:
        request_ids = array("i")
        request_ids.frombytes(abort.request_ids[: len(abort.request_ids) // 4 * 4])
        for request_id in request_ids:
            if request_id in lease.open_requests:
                self._core.abort(lease.handle(request_id))
            else:
                lease.remember_abort(request_id)

    def _give_up(self, lease: Lease) -> None:
        """Aborts what a frontend left behind; the lease ends when the aborts have come through."""
        lease.is_ending = True
        for request_id in lease.open_requests:
            self._core.abort(lease.handle(request_id))

    def _reply(self, outputs: StepOutputs) -> None:
        self._leases.deliver(outputs)
        has_work = self._core.has_work
        now_s = self._clock()
        self._pulse.note(has_work, now_s)
        self._was_idle &= not has_work
        self._collector.on_step(now_s)
        for lease in self._leases:
            self._flush(lease, now_s, at_once=not has_work)
            if lease.is_ending and not lease.open_requests:
                self._metrics.forget_frontend(lease.identity)
                self._leases.end(lease)
        if self._pulse.is_due(now_s):
            heartbeat = self._pulse.beat(now_s)
            for lease in self._leases:
                self._try_send(self._control, lease.identity, heartbeat)

    def _flush(self, lease: Lease, now_s: float, *, at_once: bool) -> None:
        try:
            lease.outbox.flush(lambda message: self._data.send(lease.identity, message), now_s, at_once=at_once)
        except GonePeer:
            lease.outbox = Outbox(self._boot_id)
            self._give_up(lease)

    def _try_send(self, socket: EngineSocket, identity: bytes, message: messages.ToFrontend) -> None:
        """For messages that are asked for again or follow again, and so may get lost."""
        try:
            socket.send(identity, message)
        except (SlowPeer, GonePeer):
            return

    def _is_drained(self) -> bool:
        if not self._is_stopping:
            return False
        now_s = self._clock()
        if self._drain_until_s is None:
            self._drain_until_s = now_s + DRAIN_TIMEOUT_S
        has_unsent = any(not lease.outbox.is_empty for lease in self._leases)
        return now_s >= self._drain_until_s or not (self._core.has_work or has_unsent) or not self._leases

    def _abandon_rest(self) -> None:
        """Ends what did not finish in time, so that nobody waits for it."""
        num_open = sum(len(lease.open_requests) for lease in self._leases)
        if num_open:
            print(f"Stopping: {num_open} requests did not finish in time", file=sys.stderr, flush=True)
            for lease in self._leases:
                self._give_up(lease)
            self._reply(self._core.step())

    def _close(self) -> None:
        self._is_closed = True
        self._data.close(LINGER_MS)
        self._control.close()
        self._context.term()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

"""The engine's side of the real sockets for an engine without a model: it says Ready, heartbeats and what it counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from penstock.frontend.tokenizer import Tokenizer
from penstock.ipc import messages
from penstock.ipc.codec import decode
from penstock.ipc.messages import HEARTBEAT_INTERVAL_S, PROTOCOL_VERSION, EngineHeartbeat, Hello, Metric, Ready, StatsRequest
from penstock.ipc.sockets import EngineSocket, GonePeer

BLOCK_SIZE = 16


class Link:
    """Both sockets. `frontends` are the identities that have said Hello."""

    def __init__(self, socket_dir: Path, ready: Ready, metrics: Callable[[], tuple[Metric, ...]]) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._data = EngineSocket(context, socket_dir, "data")
        self._control = EngineSocket(context, socket_dir, "control")
        self.poller = zmq.Poller()
        for socket in (self._data.socket, self._control.socket):
            self.poller.register(socket, zmq.POLLIN)
        self._ready = ready
        self._metrics = metrics
        self._next_heartbeat_s = 0.0
        self.frontends: set[bytes] = set()

    @property
    def boot_id(self) -> bytes:
        """What outputs are signed with."""
        return self._ready.engine_boot_id

    def receive(self, timeout_ms: int) -> tuple[list[tuple[bytes, messages.ToEngine | messages.ToFrontend]], set[object]]:
        """What has come for the link's user, with who said it, and what else of the poller's sources is readable."""
        readable = {source for source, _ in self.poller.poll(timeout_ms)}
        found = []
        for socket in (self._control, self._data):
            while socket.socket in readable and (received := socket.receive_bytes()) is not None:
                identity, message = received[0], decode(received[1])
                if not self._answer(identity, message):
                    found.append((identity, message))
        if time.monotonic() >= self._next_heartbeat_s:
            self._next_heartbeat_s = time.monotonic() + HEARTBEAT_INTERVAL_S
            self._beat()
        return found, readable

    def send(self, identity: bytes, message: messages.Outputs | messages.Rejected) -> None:
        """To one frontend."""
        self._data.send(identity, message)

    def _answer(self, identity: bytes, message: messages.ToEngine | messages.ToFrontend) -> bool:
        if isinstance(message, Hello):
            self.frontends.add(identity)
            self._data.send(identity, self._ready)
        elif isinstance(message, StatsRequest):
            self._control.send(identity, messages.Stats(nonce=message.nonce, metrics=self._metrics()))
        else:
            return False
        return True

    def _beat(self) -> None:
        beat = EngineHeartbeat(engine_boot_id=self.boot_id, step_age_s=0.0, num_running=0, num_waiting=0, kv_usage=0.0)
        for identity in list(self.frontends):
            try:
                self._control.send(identity, beat)
            except GonePeer:
                continue  # the control pair connects a moment after the data pair


def facts(model_dir: Path, tokenizer: Tokenizer, *, max_model_len: int, num_blocks: int) -> Ready:
    """What a frontend is told of the model that is not there."""
    return Ready(
        protocol_version=PROTOCOL_VERSION,
        engine_boot_id=os.urandom(8),
        model_dir=str(model_dir),
        served_model_names=("stand-in",),
        max_model_len=max_model_len,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=(),
        generation_defaults={},
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=4096,
        dtype="none",
        device="cpu",
        created_s=int(time.time()),
    )

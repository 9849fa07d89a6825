"""The sockets between frontends and engine: a data pair and a control pair, ROUTER in the engine, DEALER in each frontend.

Addresses are `ipc://` paths in a private directory of mode 0700 (`make_socket_dir`). A frontend's identity, the same on both
pairs, is its name and 8 random bytes of its boot: what was meant for a dead frontend never reaches its successor.
Sends never block: `SlowPeer` says the peer's queue is full, `GonePeer` that nobody of that name is connected.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import zmq
import zmq.asyncio

from . import messages
from .codec import MAX_MESSAGE_BYTES, decode, encode

MAX_PATH_BYTES = 107
"""Longest path of a unix socket on Linux."""
SEND_HIGH_WATER_MARK = 1000
RECEIVE_HIGH_WATER_MARK = 10_000


class SlowPeer(Exception):
    """The peer does not read fast enough: its queue is full. Keep the message and try again later."""


class GonePeer(Exception):
    """No peer of that identity is connected."""


def make_socket_dir() -> Path:
    """A new private directory for one server's sockets, with a path short enough for unix sockets."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if parent and os.access(parent, os.W_OK) and len(os.fsencode(parent)) <= 70:
            return Path(tempfile.mkdtemp(prefix="penstock-", dir=parent))
    raise OSError("no writable directory for sockets: set TMPDIR to one with a path of at most 70 characters")


def check_socket_dir(path: Path) -> None:
    """Raises OSError unless `path` is a directory of ours that nobody else may enter, with a path that is not too long."""
    info = path.stat()
    if not stat.S_ISDIR(info.st_mode):
        raise OSError(f"{path} is not a directory")
    if info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise OSError(f"{path} must belong to user {os.geteuid()} and have mode 0700")
    if len(os.fsencode(path / "control")) > MAX_PATH_BYTES:
        raise OSError(f"{path} is too long: a unix socket's path has at most {MAX_PATH_BYTES} characters")


def _address(socket_dir: Path, pair: str) -> str:
    return f"ipc://{socket_dir / pair}"


def _configure(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)


class EngineSocket:
    """The engine's end of one pair: synchronous, polled by its loop."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket_dir: Path, pair: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        _configure(self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(_address(socket_dir, pair))

    def receive_bytes(self) -> tuple[bytes, bytes] | None:
        """(identity, message) of the next one waiting, still encoded; None when there is none."""
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        # A peer that is not one of our frontends may send any number of frames; an empty message fails to decode.
        return frames[0], frames[1] if len(frames) == 2 else b""

    def send(self, identity: bytes, message: messages.ToFrontend) -> None:
        """Sends without blocking; raises SlowPeer or GonePeer."""
        try:
            self.socket.send_multipart((identity, encode(message)), zmq.NOBLOCK)
        except zmq.Again as error:
            raise SlowPeer from error
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise GonePeer from error

    def close(self, linger_ms: int = 0) -> None:
        """Closes; what has been sent has `linger_ms` to get out, during which terminating the context blocks."""
        self.socket.close(linger_ms)


class FrontendSocket:
    """A frontend's end of one pair, for asyncio. Connecting succeeds before the engine exists."""

    def __init__(self, context: zmq.asyncio.Context, socket_dir: Path, pair: str, identity: bytes) -> None:
        self.socket = context.socket(zmq.DEALER)
        _configure(self.socket)
        self.socket.setsockopt(zmq.ROUTING_ID, identity)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self.socket.connect(_address(socket_dir, pair))
        self._waiting: zmq.Socket[bytes] = zmq.Socket.shadow(self.socket)

    async def send(self, message: messages.ToEngine) -> None:
        """Sends without waiting for room; raises SlowPeer when the engine is away or its queue is full."""
        try:
            await self.socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again as error:
            raise SlowPeer from error

    async def receive(self) -> messages.ToEngine | messages.ToFrontend:
        """The next message; raises ProtocolError for one that is none of ours."""
        return decode(await self.socket.recv())

    def receive_waiting(self) -> messages.ToEngine | messages.ToFrontend | None:
        """The next message if it is there already; raises ProtocolError for one that is none of ours."""
        try:
            return decode(self._waiting.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None

    def close(self) -> None:
        self.socket.close(0)

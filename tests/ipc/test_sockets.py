"""The sockets never block, never lose silently, and live in a private directory."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from penstock.ipc.codec import ProtocolError, decode, encode
from penstock.ipc.messages import Heartbeat, Hello, Rejected, Stats
from penstock.ipc.sockets import (
    SEND_HIGH_WATER_MARK,
    EngineSocket,
    FrontendSocket,
    GonePeer,
    SlowPeer,
    check_socket_dir,
    make_socket_dir,
)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        yield Path(directory)


@pytest.fixture
def engine(socket_dir: Path) -> Iterator[EngineSocket]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = EngineSocket(context, socket_dir, "data")
    yield socket
    socket.close()
    context.term()


@pytest.fixture
async def context() -> AsyncIterator[zmq.asyncio.Context]:
    context = zmq.asyncio.Context()
    yield context
    context.term()


async def receive(engine: EngineSocket) -> tuple[bytes, bytes]:
    async with asyncio.timeout(5):
        while (received := engine.receive_bytes()) is None:
            await asyncio.sleep(0.001)
    return received


async def say_hello(frontend: FrontendSocket) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                return await frontend.send(Hello(1))
            except SlowPeer:
                await asyncio.sleep(0.001)


async def test_messages_that_wait_can_be_taken_without_waiting(
    engine: EngineSocket, socket_dir: Path, context: zmq.asyncio.Context
) -> None:
    frontend = FrontendSocket(context, socket_dir, "data", b"a")
    await say_hello(frontend)
    await receive(engine)
    assert frontend.receive_waiting() is None
    for turn in range(3):
        for nonce in range(5):
            engine.send(b"a", Stats(nonce=nonce, metrics=()))
        assert await asyncio.wait_for(frontend.receive(), 5) == Stats(nonce=0, metrics=()), turn
        taken: list[object] = []
        async with asyncio.timeout(5):
            while len(taken) < 4:
                if (message := frontend.receive_waiting()) is None:
                    await asyncio.sleep(0.001)
                else:
                    taken.append(message)
        assert taken == [Stats(nonce=nonce, metrics=()) for nonce in range(1, 5)]
        assert frontend.receive_waiting() is None
    frontend.close()


async def test_messages_go_both_ways(engine: EngineSocket, socket_dir: Path, context: zmq.asyncio.Context) -> None:
    frontend = FrontendSocket(context, socket_dir, "data", b"a")
    await say_hello(frontend)
    identity, data = await receive(engine)
    assert (identity, decode(data)) == (b"a", Hello(1))
    engine.send(b"a", Stats(nonce=3, metrics=()))
    assert await frontend.receive() == Stats(nonce=3, metrics=())
    assert engine.receive_bytes() is None
    frontend.close()


async def test_a_frontend_may_come_before_its_engine(socket_dir: Path, context: zmq.asyncio.Context) -> None:
    frontend = FrontendSocket(context, socket_dir, "data", b"a")
    with pytest.raises(SlowPeer):
        await frontend.send(Hello(1))
    sync_context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    engine = EngineSocket(sync_context, socket_dir, "data")
    await say_hello(frontend)
    assert (await receive(engine))[0] == b"a"
    engine.close()
    sync_context.term()
    frontend.close()


def test_nobody_of_that_name_is_gone(engine: EngineSocket) -> None:
    with pytest.raises(GonePeer):
        engine.send(b"nobody", Stats(nonce=1, metrics=()))


async def test_a_frontend_that_left_is_gone(engine: EngineSocket, socket_dir: Path, context: zmq.asyncio.Context) -> None:
    frontend = FrontendSocket(context, socket_dir, "data", b"a")
    await say_hello(frontend)
    await receive(engine)
    frontend.close()

    async def send_until_gone() -> None:
        while True:
            engine.send(b"a", Stats(nonce=1, metrics=()))
            await asyncio.sleep(0.001)

    with pytest.raises(GonePeer):
        await asyncio.wait_for(send_until_gone(), 5)


async def test_a_full_queue_is_told_and_nothing_sent_is_lost(
    engine: EngineSocket, socket_dir: Path, context: zmq.asyncio.Context
) -> None:
    frontend = FrontendSocket(context, socket_dir, "data", b"a")
    frontend.socket.setsockopt(zmq.RCVHWM, 1)
    await say_hello(frontend)
    await receive(engine)
    padding = "x" * 10_000
    num_sent = 0

    def send_until_full() -> None:
        nonlocal num_sent
        while num_sent < 100 * SEND_HIGH_WATER_MARK:
            engine.send(b"a", Rejected(num_sent + 1, 1, padding, None))
            num_sent += 1

    with pytest.raises(SlowPeer):
        send_until_full()
    assert num_sent >= SEND_HIGH_WATER_MARK
    for number in range(num_sent):
        message = await asyncio.wait_for(frontend.receive(), 5)
        assert isinstance(message, Rejected)
        assert message.request_id == number + 1
    frontend.close()


async def test_several_frames_are_no_message(engine: EngineSocket, socket_dir: Path, context: zmq.asyncio.Context) -> None:
    frontend = FrontendSocket(context, socket_dir, "data", b"a")
    await say_hello(frontend)
    await receive(engine)
    await frontend.socket.send_multipart([encode(Heartbeat({}, {})), b"more"])
    identity, data = await receive(engine)
    assert (identity, data) == (b"a", b"")
    with pytest.raises(ProtocolError):
        decode(data)
    frontend.close()


def test_a_new_directory_is_private_and_short() -> None:
    path = make_socket_dir()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        check_socket_dir(path)
        assert len(os.fsencode(path / "control")) < 107
    finally:
        path.rmdir()


def test_a_long_temporary_directory_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long_dir = tmp_path / ("x" * 90)
    long_dir.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long_dir))
    path = make_socket_dir()
    path.rmdir()
    assert long_dir not in path.parents


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_others_may_enter_is_refused(socket_dir: Path, mode: int) -> None:
    socket_dir.chmod(mode)
    with pytest.raises(OSError, match="mode 0700"):
        check_socket_dir(socket_dir)
    socket_dir.chmod(0o700)


def test_what_is_no_directory_is_refused(socket_dir: Path) -> None:
    (socket_dir / "file").touch()
    with pytest.raises(OSError, match="not a directory"):
        check_socket_dir(socket_dir / "file")
    with pytest.raises(FileNotFoundError):
        check_socket_dir(socket_dir / "missing")


def test_a_path_too_long_for_a_unix_socket_is_refused(socket_dir: Path) -> None:
    long_dir = socket_dir / ("x" * 100)
    long_dir.mkdir(mode=0o700)
    with pytest.raises(OSError, match="too long"):
        check_socket_dir(long_dir)

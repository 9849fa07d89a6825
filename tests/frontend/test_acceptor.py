"""Acceptors of one board in one process: who takes which connection. With real processes: tests/test_connections.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator

import pytest

from penstock.frontend import acceptor as acceptor_module
from penstock.frontend.acceptor import PATIENCE_S, Acceptor
from penstock.frontend.board import Place, Presence, make_board
from tests.frontend.harness import until


class Connection(asyncio.Protocol):
    """Says which frontend has it."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._frontend.transports.append(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._frontend.acceptor.release(self)


class Frontend:
    """A place and, once it accepts, an acceptor."""

    def __init__(self, board_fd: int, number: int) -> None:
        self.place = Place(board_fd, number)
        self.transports: list[asyncio.BaseTransport] = []

    def accept(self, listener: socket.socket, presence: Presence = Presence.READY) -> None:
        self.place.show(presence)
        self.acceptor = Acceptor(listener, self.place, lambda: Connection(self))

    @property
    def num_held(self) -> int:
        return self.place.mine.num_connections


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


@pytest.fixture
def frontends() -> Iterator[list[Frontend]]:
    fd = make_board(3)
    made = [Frontend(fd, number) for number in range(3)]
    yield made
    for frontend in made:
        if hasattr(frontend, "acceptor"):
            frontend.acceptor.close()
    os.close(fd)


@contextlib.contextmanager
def connected(listener: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(count)]


async def test_who_holds_fewer_takes_the_next(listener: socket.socket, frontends: list[Frontend]) -> None:
    with socket.socket(fileno=os.dup(listener.fileno())) as other:
        first, second, _ = frontends
        first.accept(listener)
        with connected(listener, 6):
            await until(lambda: first.num_held == 6)
            second.accept(other)
            with connected(listener, 6):
                await until(lambda: first.num_held + second.num_held == 12)
                assert second.num_held >= 5
        await until(lambda: first.num_held + second.num_held == 0)
        second.acceptor.close()


async def test_one_that_hangs_is_waited_for_once_and_then_left_out(listener: socket.socket, frontends: list[Frontend]) -> None:
    first, hung, _ = frontends
    hung.place.show(Presence.READY)
    first.accept(listener)
    begin_s = asyncio.get_running_loop().time()
    with connected(listener, 1):
        await until(lambda: first.num_held == 1)
        with connected(listener, 1):
            await until(lambda: first.num_held == 2)
            waited_s = asyncio.get_running_loop().time() - begin_s
            assert waited_s >= PATIENCE_S
            assert not first.acceptor._defers()
            await asyncio.sleep(2 * PATIENCE_S)
            assert not first.acceptor._defers(), "it is waited for again"
            with connected(listener, 100):
                await until(lambda: first.num_held == 102)
            hung.place.show_connections(1)
            assert first.acceptor._defers()
    assert hung.num_held == 1


async def test_one_that_is_not_ready_lets_a_ready_one_take_it(listener: socket.socket, frontends: list[Frontend]) -> None:
    with socket.socket(fileno=os.dup(listener.fileno())) as other:
        early, late, _ = frontends
        late.accept(listener, Presence.NOT_READY)
        early.accept(other)
        with connected(listener, 20):
            await until(lambda: early.num_held + late.num_held == 20)
            assert early.num_held == 20
        early.acceptor.close()


async def test_without_a_ready_one_all_take_part(listener: socket.socket, frontends: list[Frontend]) -> None:
    first, _, _ = frontends
    first.accept(listener, Presence.NOT_READY)
    with connected(listener, 3):
        await until(lambda: first.num_held == 3)


async def test_too_many_open_files_are_logged_and_tried_again(
    frontends: list[Frontend], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(socket.socket):
        is_full = True

        def accept(self) -> tuple[socket.socket, object]:
            if self.is_full:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().accept()

    monkeypatch.setattr(acceptor_module, "PAUSE_S", 0.05)
    with Full() as listener, caplog.at_level(logging.ERROR):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        frontends[0].accept(listener)
        with connected(listener, 1):
            await until(lambda: "Too many open files" in caplog.text)
            listener.is_full = False
            await until(lambda: frontends[0].num_held == 1)
        assert len(caplog.records) < 10
        frontends[0].acceptor.close()


async def test_a_closed_acceptor_takes_nothing_more(listener: socket.socket, frontends: list[Frontend]) -> None:
    first, _, _ = frontends
    first.accept(listener)
    with connected(listener, 1):
        await until(lambda: first.num_held == 1)
        first.acceptor.close()
        await first.acceptor.wait_closed()
        with connected(listener, 1):
            await asyncio.sleep(0.05)
            assert first.num_held == 1

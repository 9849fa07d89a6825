"""`penstock health` against an engine's sockets, answered by the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from penstock import cli, health
from penstock.ipc.codec import decode
from penstock.ipc.messages import PROTOCOL_VERSION, EngineHeartbeat, Goodbye, Heartbeat, Hello, Ready
from penstock.ipc.sockets import EngineSocket, make_socket_dir

READY = Ready(
    protocol_version=PROTOCOL_VERSION,
    engine_boot_id=b"12345678",
    model_dir="/model",
    served_model_names=("model",),
    max_model_len=64,
    vocab_size=256,
    eos_token_ids=(),
    generation_defaults={},
    block_size=16,
    num_blocks=4,
    max_num_seqs=2,
    dtype="float32",
    device="cpu",
    created_s=0,
)


@pytest.fixture
def socket_dir() -> Path:
    return make_socket_dir()


@contextmanager
def engine(socket_dir: Path, *, step_age_s: float = 0.0, heartbeats: bool = True) -> Iterator[list[str]]:
    """Greets whoever says Hello; yields the names of the messages it has got."""
    heard: list[str] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    data, control = EngineSocket(context, socket_dir, "data"), EngineSocket(context, socket_dir, "control")
    heartbeat = EngineHeartbeat(engine_boot_id=b"12345678", step_age_s=step_age_s, num_running=0, num_waiting=0, kv_usage=0.0)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            for socket in (data, control):
                while (received := socket.receive_bytes()) is not None:
                    message = decode(received[1])
                    heard.append(type(message).__name__)
                    if isinstance(message, Hello):
                        data.send(received[0], READY)
                    if isinstance(message, Heartbeat) and heartbeats:
                        control.send(received[0], heartbeat)
            ended.wait(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        thread.join()
        data.close()
        control.close()
        context.term()


def test_an_engine_whose_steps_advance_is_healthy(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engine(socket_dir):
        assert cli.run(["health", "--socket-dir", str(socket_dir)]) == 0
    assert "healthy" in capsys.readouterr().out


def test_it_takes_its_leave_so_that_no_lease_stays_behind(socket_dir: Path) -> None:
    with engine(socket_dir) as heard:
        assert health.run(socket_dir, 5) == 0
    assert heard[-1] == Goodbye.__name__


def test_an_engine_that_hangs_in_a_step_is_not_healthy(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engine(socket_dir, step_age_s=60):
        assert health.run(socket_dir, 5) == 1
    assert "has not completed a step for 60 s" in capsys.readouterr().out


def test_an_engine_that_only_greets_is_not_healthy(socket_dir: Path) -> None:
    with engine(socket_dir, heartbeats=False):
        assert health.run(socket_dir, 0.5) == 1


def test_no_engine_is_not_healthy(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert health.run(socket_dir, 0.3) == 1
    assert "no answer" in capsys.readouterr().out

"""The supervisor over stand-in children: real processes, real signals, a real port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from penstock.supervisor import KILLED_BY_HAND, ServerPlan, Supervisor
from tests.conftest import processes_with

STAND_IN = Path(__file__).with_name("stand_in_server.py")
PATIENCE_S = 20.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain until {what}"
        time.sleep(0.02)


class Server:
    """A supervisor with its stand-ins, and what it has said."""

    def __init__(self, directory: Path, *behaviours: str) -> None:
        self.directory = directory
        with (directory / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(STAND_IN), "supervise", str(directory), *behaviours],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    @property
    def said(self) -> str:
        return (self.directory / "stderr").read_text()

    def events(self, name: str) -> list[int]:
        """The process ids of who noted this event, in order."""
        log = self.directory / "events"
        lines = log.read_text().splitlines() if log.exists() else []
        return [int(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.said or self.process.poll() is not None, f"the supervisor says {text!r}")
        assert text in self.said

    def wait_for_event(self, name: str, count: int = 1) -> None:
        wait_until(lambda: len(self.events(name)) >= count, f"there are {count} of {name!r}")

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path, no_process_left: str) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start_server(*behaviours: str) -> Server:
        servers.append(Server(tmp_path, *behaviours))
        return servers[-1]

    yield start_server
    for server in servers:
        with contextlib.suppress(ProcessLookupError):
            server.process.terminate()
        server.process.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_frontends_then_engine_and_exits_with_0(start: Callable[..., Server], number: signal.Signals) -> None:
    server = start()
    server.wait_for("serving stand-in at " + server.url)
    assert "/v1/chat/completions" in server.said
    assert 'base_url="' + server.url + '/v1"' in server.said
    server.process.send_signal(number)
    assert server.exit_code() == 0
    ends = [line.rpartition(" ")[0] for line in (server.directory / "events").read_text().splitlines() if " ends " in line]
    assert ends == ["frontend ends", "frontend ends", "engine ends"]
    assert "died" not in server.said


def test_frontends_answer_503_while_the_engine_loads(start: Callable[..., Server]) -> None:
    server = start()
    assert server.get("/readyz") == 503
    server.wait_for("ready after")
    assert server.get("/readyz") == 200


def test_an_open_request_is_finished_before_the_end(start: Callable[..., Server]) -> None:
    server = start()
    server.wait_for("serving")
    statuses: list[int] = []
    client = threading.Thread(target=lambda: statuses.append(server.get("/slow")))
    client.start()
    server.wait_for_event("slow answer begins")
    server.process.terminate()
    assert server.exit_code() == 0
    client.join()
    assert statuses == [200]


def get_whatever_happens(server: Server) -> None:
    with contextlib.suppress(OSError):
        server.get("/slow")


def test_a_second_ctrl_c_kills_at_once(start: Callable[..., Server]) -> None:
    server = start()
    server.wait_for("serving")
    threading.Thread(target=get_whatever_happens, args=(server,)).start()
    server.wait_for_event("slow answer begins")
    server.process.send_signal(signal.SIGINT)
    server.wait_for("stopping")
    begin_s = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.exit_code() == KILLED_BY_HAND
    assert time.monotonic() - begin_s < 0.8
    assert not server.events("engine ends")


def test_a_child_that_ignores_sigterm_is_killed_in_the_end(start: Callable[..., Server]) -> None:
    server = start("frontend-ignores-sigterm")
    server.wait_for("serving")
    server.process.terminate()
    assert server.exit_code() == 0
    assert "frontend-0 does not end, killing it" in server.said
    assert len(server.events("engine ends")) == 1


def test_a_killed_frontend_is_replaced(start: Callable[..., Server]) -> None:
    server = start()
    server.wait_for("serving")
    victim = server.events("frontend starts")[0]
    os.kill(victim, signal.SIGKILL)
    server.wait_for_event("frontend starts", count=3)
    assert re.search(r"frontend-\d has died \(killed by SIGKILL\), starting it again\n", server.said)
    assert server.get("/readyz") == 200
    assert len(server.events("engine starts")) == 1


def test_a_killed_engine_is_replaced_and_its_children_die_with_it(start: Callable[..., Server], no_process_left: str) -> None:
    server = start("engine-has-child")
    server.wait_for("serving")
    engine_pid, child_pid = server.events("engine starts")[0], server.events("engine has child")[0]
    os.kill(engine_pid, signal.SIGKILL)
    server.wait_for("ready again after")
    assert len(server.events("engine starts")) == 2
    assert len(server.events("frontend starts")) == 2
    assert child_pid not in processes_with(no_process_left)


def test_an_engine_that_dies_again_and_again_is_started_with_growing_delays(start: Callable[..., Server]) -> None:
    server = start()
    server.wait_for("serving")
    for deaths in range(1, 4):
        os.kill(server.events("engine starts")[-1], signal.SIGKILL)
        server.wait_for_event("engine starts", count=deaths + 1)
    assert re.findall(r"starting it again(?: in (\S+) s)?\n", server.said) == ["", "0.5", "1"]


@pytest.mark.parametrize(("behaviour", "code"), [("engine-exits-2", 2), ("engine-exits-7", 1), ("engine-exits-0", 1)])
def test_an_engine_that_fails_to_start_ends_everything(start: Callable[..., Server], behaviour: str, code: int) -> None:
    server = start(behaviour)
    assert server.exit_code() == code
    assert "the engine could not start" in server.said
    assert len(server.events("engine starts")) == 1


def test_frontends_that_never_start_end_everything(start: Callable[..., Server]) -> None:
    server = start("frontend-crashes")
    assert server.exit_code() == 1
    assert re.search(r"frontend-\d could not start \(exit code 1\)", server.said)


def test_a_killed_supervisor_takes_everybody_along(start: Callable[..., Server], no_process_left: str) -> None:
    server = start()
    server.wait_for("serving")
    assert len(processes_with(no_process_left)) == 4
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not processes_with(no_process_left), "all processes have gone")


def test_signals_do_afterwards_what_they_did_before() -> None:
    plan = ServerPlan(engine=None, frontends=(), url="http://127.0.0.1:9", api_key=None, shutdown_timeout_s=0)
    said: list[str] = []

    async def run() -> int:
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGTERM)
        return await Supervisor(plan, said.append).run()

    def before(number: int, frame: FrameType | None) -> None:
        raise AssertionError("nobody asked")

    usual = signal.signal(signal.SIGTERM, before)
    try:
        assert asyncio.run(run()) == 0
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert len(said) == 1

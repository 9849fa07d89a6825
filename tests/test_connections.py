"""Several real frontends on one port: each has its share of the connections, whoever is late, hangs or dies."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator

import pytest

from scripts.bench_processes import connections, idle_cpu, num_sockets, shares
from tests.servers import Server, running_server
from tests.toy_model import make_toy_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
NUM_FRONTENDS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = make_toy_model(tmp_path_factory.mktemp("connections") / "toy")
    with running_server(str(model), "--frontends", str(NUM_FRONTENDS), "--log-level", "warning") as running:
        yield running


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in turn"])
@pytest.mark.parametrize(("count", "most", "fewest"), [(8, 4, 1), (64, 26, 8), (512, 180, 80)])
def test_connections_are_shared_fairly(server: Server, count: int, most: int, fewest: int, at_once: bool) -> None:
    rounds = [shares(server, count, at_once=at_once)[0] for _ in range(3)]
    assert [sum(held) for held in rounds] == [count] * 3
    # Medians: on a busy machine one of them may not run for longer than the others wait for it.
    assert statistics.median(map(max, rounds)) <= most
    assert statistics.median(map(min, rounds)) >= fewest


def test_a_frontend_that_hangs_leaves_its_share_to_the_others(server: Server) -> None:
    hung, *others = server.children("frontend")
    before = {pid: num_sockets(pid) for pid in others}
    os.kill(hung, signal.SIGSTOP)
    try:
        with connections(server.url, 90, at_once=False) as seconds:
            held = [num_sockets(pid) - before[pid] for pid in others]
    finally:
        os.kill(hung, signal.SIGCONT)
    assert seconds < 10
    assert sum(held) == 90
    assert min(held) >= 15


def test_a_killed_frontends_share_goes_to_the_others_and_its_successor_catches_up(server: Server) -> None:
    with connections(server.url, 40, at_once=True):
        before = server.children("frontend")
        os.kill(before[0], signal.SIGKILL)
        with connections(server.url, 30, at_once=False):
            assert server.get("/livez")[0] == 200
        deadline = time.monotonic() + 30
        num_of_successor = 0
        while num_of_successor < 6:  # it is starting, or not ready yet
            assert time.monotonic() < deadline, server.log
            successors = set(server.children("frontend")) - set(before)
            at_first = sum(map(num_sockets, successors))
            with connections(server.url, 8, at_once=False):
                num_of_successor = sum(map(num_sockets, successors)) - at_first
            time.sleep(0.05)


def test_nothing_spins_while_idle(server: Server) -> None:
    time.sleep(0.5)
    idle = idle_cpu(server, 4.0)
    assert sum(idle.values()) < 0.02, idle

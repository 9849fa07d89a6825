"""How evenly several frontends share connections, and what all of a server's processes cost while nothing happens.

    python -m scripts.bench_processes
    python -m scripts.bench_processes --frontends 6 --connections 1024

A server with the toy model is started for each number of frontends. Kept-alive connections are opened at once and one after
another, each asks for /livez; counted are the sockets of each frontend.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import Server, running_server
from tests.toy_model import make_toy_model

_REQUEST = b"GET /livez HTTP/1.1\r\nHost: penstock\r\n\r\n"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def connections(url: str, count: int, *, at_once: bool) -> Iterator[float]:
    """Holds kept-alive connections that have been answered once; yields how many seconds that took."""
    address = (urlsplit(url).hostname, urlsplit(url).port)
    with contextlib.ExitStack() as stack:
        began_s = time.perf_counter()
        if at_once:
            opened = [stack.enter_context(socket.socket()) for _ in range(count)]
            for one in opened:
                one.setblocking(False)
                one.connect_ex(address)
            _ask_all(opened)
        else:
            for _ in range(count):
                one = stack.enter_context(socket.create_connection(address))
                one.sendall(_REQUEST)
                one.recv(4096)
        yield time.perf_counter() - began_s


def num_sockets(pid: int) -> int:
    """Open sockets of a process."""
    num = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            num += str(entry.readlink()).startswith("socket:")
    return num


def cpu_s(pid: int) -> float:
    """User and system time so far of all its threads."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S


def shares(server: Server, count: int, *, at_once: bool) -> tuple[list[int], float]:
    """Connections of each frontend, and the seconds until all were answered."""
    pids = sorted(server.children("frontend"))
    before = [num_sockets(pid) for pid in pids]
    with connections(server.url, count, at_once=at_once) as seconds:
        held = [num_sockets(pid) - base for pid, base in zip(pids, before, strict=True)]
    while sum(map(num_sockets, pids)) > sum(before):
        time.sleep(0.05)
    return held, seconds


def idle_cpu(server: Server, seconds: float) -> dict[str, float]:
    """Shares of one core."""
    processes = {"supervisor": [server.process.pid]}
    processes |= {command: server.children(command) for command in ("engine", "frontend")}
    before = {name: sum(map(cpu_s, pids)) for name, pids in processes.items()}
    time.sleep(seconds)
    return {name: (sum(map(cpu_s, pids)) - before[name]) / seconds for name, pids in processes.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frontends", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--connections", type=int, nargs="+", default=[8, 64, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds of doing nothing (default: 10)")
    flags = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        model = str(make_toy_model(Path(directory) / "toy"))
        for num_frontends in flags.frontends:
            with running_server(model, "--frontends", str(num_frontends), "--log-level", "warning") as server:
                _measure(server, num_frontends, flags)


def _measure(server: Server, num_frontends: int, flags: argparse.Namespace) -> None:
    if flags.idle:
        time.sleep(1)
        idle = idle_cpu(server, flags.idle)
        each = ", ".join(f"{name} {share:.2%}" for name, share in idle.items())
        print(f"{num_frontends} frontends, idle: {sum(idle.values()):.2%} of a core ({each})", flush=True)
    for count in flags.connections:
        for at_once in (True, False):
            rounds = [shares(server, count, at_once=at_once) for _ in range(flags.rounds)]
            spread = statistics.median(max(held) * num_frontends / count for held, _ in rounds)
            seconds = statistics.median(seconds for _, seconds in rounds)
            how = "at once" if at_once else "in turn"
            held = " ".join(str(held) for held, _ in rounds)
            print(
                f"{num_frontends} frontends, {count} connections {how}: largest share / fair share {spread:.2f}, "
                f"{seconds * 1000:.0f} ms; {held}",
                flush=True,
            )


def _ask_all(opened: Sequence[socket.socket]) -> None:
    with selectors.DefaultSelector() as selector:
        for one in opened:
            selector.register(one, selectors.EVENT_WRITE)
        while selector.get_map():
            for key, events in selector.select(10):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if events & selectors.EVENT_WRITE:
                    ready.sendall(_REQUEST)
                    selector.modify(ready, selectors.EVENT_READ)
                else:
                    ready.recv(4096)
                    selector.unregister(ready)


if __name__ == "__main__":
    main()

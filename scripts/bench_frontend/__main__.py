"""One frontend on one core against a stand-in engine and a sink on another: streamed tokens per second, new and naive in turn.

    python -m scripts.bench_frontend
    python -m scripts.bench_frontend --streams 64 --rate 1000 --frontends new

The medians of all rounds go to stdout as a table. Every text is checked: a wrong one fails the run. CPU shares are of one core,
of the timed part alone; one of the stand-in or the sink close to their common core's limit makes the run worthless.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "new": (
        "-m",
        "penstock",
        "frontend",
        "--socket-dir",
        "{socket_dir}",
        "--listen-fd",
        "{listen_fd}",
        "--stream-interval",
        "{stream_interval}",
        "--log-level",
        "warning",
    ),
    "naive": ("-m", "scripts.bench_frontend.naive", "{socket_dir}", "{listen_fd}"),
}
_START_LIMIT_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Round:
    """One measurement."""

    tokens_per_s: float
    tokens_per_event: float
    frontend_cpu: float
    """Share of a core, like the following two."""
    stand_in_cpu: float
    sink_cpu: float
    rss_start_mb: float
    rss_streaming_mb: float
    num_stalls: float


def measure(kind: str, arguments: argparse.Namespace) -> Round:
    """Starts all three processes, and ends them."""
    with contextlib.ExitStack() as stack:
        socket_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-", dir="/tmp"))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        acks_read, acks_write = os.pipe()
        engine_command = (
            *("-m", "scripts.bench_frontend.stand_in", socket_dir, str(arguments.model), "--acks-fd", str(acks_read)),
            *("--groups", str(arguments.groups), "--rate", str(arguments.rate)),
            *("--warmup", str(arguments.warmup), "--seconds", str(arguments.seconds)),
        )
        stand_in = stack.enter_context(_running(engine_command, arguments.load_core, acks_read))
        names = {"socket_dir": socket_dir, "listen_fd": listener.fileno(), "stream_interval": arguments.stream_interval}
        command = [part.format(**names) for part in COMMANDS[kind]]
        frontend = stack.enter_context(_running(command, arguments.frontend_core, listener.fileno()))
        port = listener.getsockname()[1]
        _wait_until_ready(port, frontend)
        rss_start_mb = _rss_mb(frontend)
        sink_command = (
            *("-m", "scripts.bench_frontend.sink", str(port), "--acks-fd", str(acks_write)),
            *("--streams", str(arguments.streams), "--groups", str(arguments.groups)),
        )
        sink = stack.enter_context(_running(sink_command, arguments.load_core, acks_write))
        os.close(acks_read)
        os.close(acks_write)
        processes = (frontend, stand_in, sink)
        _expect(stand_in, "begin")
        before, started_s = [_cpu_s(process) for process in processes], time.perf_counter()
        _expect(stand_in, "end")
        wall_s = time.perf_counter() - started_s
        cpu = [(_cpu_s(process) - cpu_s) / wall_s for process, cpu_s in zip(processes, before, strict=True)]
        rss_streaming_mb = _rss_mb(frontend)
        said, read = _result(stand_in), _result(sink)
        if read["digests"] != [[digest] for digest in said["digests"]]:
            raise SystemExit(f"{kind}: the texts are wrong")
        tokens_per_event = said["num_tokens"] / read["num_events"]
        return Round(
            tokens_per_s=said["tokens_per_s"],
            tokens_per_event=tokens_per_event,
            frontend_cpu=cpu[0],
            stand_in_cpu=cpu[1],
            sink_cpu=cpu[2],
            rss_start_mb=rss_start_mb,
            rss_streaming_mb=rss_streaming_mb,
            num_stalls=said["num_stalls"],
        )


def table(rounds: dict[str, list[Round]]) -> str:
    """Medians, a column per frontend."""
    lines = [" | ".join(("", *rounds)), "|".join(["---"] * (1 + len(rounds)))]
    for column in fields(Round):
        medians = [statistics.median(getattr(one, column.name) for one in several) for several in rounds.values()]
        lines.append(" | ".join((column.name.replace("_per_", "/").replace("_", " "), *(f"{value:,.2f}" for value in medians))))
    if len(rounds) == 2:
        ratios = [new.tokens_per_s / naive.tokens_per_s for new, naive in zip(rounds["new"], rounds["naive"], strict=True)]
        lines.append(f"new/naive | {statistics.median(ratios):.2f} | ")
    return "\n".join(f"| {line} |" for line in lines)


@contextlib.contextmanager
def _running(arguments: tuple[str, ...] | list[str], core: int, fd: int) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        pass_fds=(fd,),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_until_ready(port: int, frontend: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + _START_LIMIT_S
    while frontend.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("the frontend did not get ready")


def _expect(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != line:
        raise SystemExit(f"{process.args!r} failed")


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    result: dict[str, Any] = json.loads(process.stdout.readline())
    return result


def _cpu_s(process: subprocess.Popen[str]) -> float:
    """User and system time so far of all its threads."""
    after_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S


def _rss_mb(process: subprocess.Popen[str]) -> float:
    [line] = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Runs all rounds, new and naive in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frontends", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--model", type=Path, default=ROOT / "penstock" / "demo_model", help="for its tokenizer and template")
    parser.add_argument("--streams", type=int, default=1024)
    parser.add_argument("--groups", type=int, default=2, help="of streams, whose tokens are under way in turn")
    parser.add_argument("--rate", type=float, default=0.0, help="steps per second; 0: as many as arrive, one token per event")
    parser.add_argument("--stream-interval", type=int, default=1, help="of the new one; above 1 with --rate only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--frontend-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1, help="of the stand-in and the sink")
    arguments = parser.parse_args()
    if arguments.stream_interval > 1 and not arguments.rate:
        parser.error("--stream-interval needs --rate: without it the stand-in waits for every token's event")
    rounds: dict[str, list[Round]] = {kind: [] for kind in arguments.frontends}
    for _ in range(arguments.rounds):
        for kind, several in rounds.items():
            several.append(measure(kind, arguments))
            print(f"{kind}: {several[-1].tokens_per_s:,.0f} tokens/s", file=sys.stderr)
    print(table(rounds))


if __name__ == "__main__":
    main()

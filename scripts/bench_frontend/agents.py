"""Agents without a GPU: `penstock bench` against real frontends and an engine that has block pool and protocol but no model.

    python -m scripts.bench_frontend.agents
    python -m scripts.bench_frontend.agents --model DIR --answers letters -- --think-time 0.5

What follows -- goes to `penstock bench`. Exit code 1 if a request failed, or if the prefix cache had 90 % or less of the
prompt tokens of turns 2 to N together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LEAST_HIT_RATE = 0.9
_START_LIMIT_S = 60.0


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, int]]:
    """The report of `penstock bench`, and what the engine's block pool says."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-", dir="/tmp")))
        engine = stack.enter_context(
            _running(
                *("scripts.bench_frontend.pool_engine", str(directory), str(arguments.model), "--answers", arguments.answers),
                *("--num-blocks", str(arguments.num_blocks), "--steps-per-s", str(arguments.steps_per_s)),
            )
        )
        report = _bench(arguments, directory, engine)
        engine.send_signal(signal.SIGTERM)
        said, _ = engine.communicate(timeout=_START_LIMIT_S)
        if engine.returncode:
            raise SystemExit(f"the engine failed with exit code {engine.returncode}")
        return report, json.loads(said)


def _bench(arguments: argparse.Namespace, directory: Path, engine: subprocess.Popen[str]) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        for _ in range(arguments.frontends):
            flags = ("--socket-dir", str(directory), "--listen-fd", str(listener.fileno()), "--log-level", "warning")
            stack.enter_context(_running("penstock", "frontend", *flags, fd=listener.fileno()))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        _wait_until_ready(url, engine)
        figures = arguments.json or directory / "figures.json"
        load = ("--lengths", "agents", "--concurrency", str(arguments.sessions), "--turns", str(arguments.turns))
        command = ["-m", "penstock", "bench", "--base-url", url, *load, "--json", str(figures), *arguments.flags]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=_environment(), check=False)
        if not figures.exists() or not figures.read_text():
            raise SystemExit(done.returncode or 1)
        report: dict[str, Any] = json.loads(figures.read_text())["loads"][0]
        return report


@contextlib.contextmanager
def _running(*arguments: str, fd: int | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=_environment(),
        pass_fds=() if fd is None else (fd,),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _wait_until_ready(url: str, engine: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + _START_LIMIT_S
    while engine.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("the server did not get ready")


def main() -> int:
    """One load; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "penstock" / "demo_model", help="for its tokenizer and template")
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--frontends", type=int, default=1)
    parser.add_argument("--steps-per-s", type=float, default=200.0, help="each gives every running request a token")
    parser.add_argument("--num-blocks", type=int, default=32_768, help="of 16 tokens, in the pool")
    parser.add_argument("--answers", choices=("words", "letters"), default="words", help="letters: tokens no tokenizer writes")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("flags", nargs="*", help="of penstock bench, after --")
    report, pool = measure(parser.parse_args())
    rate = report["prefix_cache_hit_rate_later_turns"] or 0.0
    found = pool["num_prompt_tokens_found"] / max(1, pool["num_prompt_tokens"])
    print(
        f"the block pool itself: {pool['num_requests']:,} requests, {found:.1%} of {pool['num_prompt_tokens']:,} prompt tokens"
    )
    print(f"turns 2 to {len(report['by_turn'])}: {rate:.2%} from the prefix cache, more than {LEAST_HIT_RATE:.0%} is wanted")
    return int(report["errors"] > 0 or rate <= LEAST_HIT_RATE)


if __name__ == "__main__":
    sys.exit(main())

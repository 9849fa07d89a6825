"""Real servers for tests: `python -m penstock serve` as a process of its own, watched until it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running `penstock serve`."""

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """Everything it has printed so far."""
        return self.log_path.read_text(errors="replace")

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, str]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout_s) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that carry these labels."""
        status, text = self.get("/metrics")
        assert status == 200, text
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = [
            line for line in text.splitlines() if line.startswith((name + "{", name + " ")) and all(w in line for w in wanted)
        ]
        assert lines, f"no sample of {name} in\n{text}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def children(self, command: str) -> list[int]:
        """Process ids of its children that run `penstock <command>`."""
        return [pid for pid in _descendants(self.process.pid) if f"penstock\0{command}\0" in _command_line(pid)]

    def wait_until_ready(self, timeout_s: float = 90.0) -> None:
        """Until ten probes in a row found a frontend ready: several share the port, and one may be later than another."""
        deadline = time.monotonic() + timeout_s
        num_ready = 0
        while num_ready < 10:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready after {timeout_s} s:\n{self.log}")
            num_ready = num_ready + 1 if self._is_ready() else 0
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/readyz", timeout_s=2)[0] == 200
        return False


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (task / "children").read_text().split()]
    return children + [grandchild for child in children for grandchild in _descendants(child)]


@contextlib.contextmanager
def running_server(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Starts `penstock serve` with these arguments on a free port, waits until it is ready, and ends it with SIGTERM.

    Fails unless it ends with exit code 0 and leaves no process behind.
    """
    port = free_port()
    with tempfile.NamedTemporaryFile(prefix="penstock-test-", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "serve", *arguments, "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        server = Server(f"http://127.0.0.1:{port}", process, Path(log.name))
        try:
            server.wait_until_ready()
            yield server
            family = _descendants(process.pid)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, server.log
            left = [pid for pid in family if "penstock" in _command_line(pid)]
            assert not left, f"processes left behind: {left}"
        finally:
            for pid in [*_descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

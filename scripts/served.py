"""A `penstock serve` that a benchmark starts and ends, and how much CPU time its processes have had."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05
_STOP_LIMIT_S = 30.0
_LOG_CHARACTERS = 4000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    url: str
    model_name: str
    ready_s: float
    """From exec to /readyz."""
    pid: int
    log_path: Path

    def log_lines(self) -> list[str]:
        """What it has said: the model's dtype, its KV cache and how long each phase of the start took are there."""
        return self.log_path.read_text(errors="replace").splitlines()

    def cpu_s(self) -> dict[str, float]:
        """User and system time so far: of the engine, of all frontends together, and of what else there is."""
        found: dict[str, float] = {}
        for pid in _descendants(self.pid):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                part = "engine" if b"engine" in command else "frontends" if b"frontend" in command else "others"
                after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[part] = found.get(part, 0.0) + (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S
        return found


@contextlib.contextmanager
def serving(model_dir: Path, flags: Sequence[str], limit_s: float) -> Iterator[Served]:
    """A server for as long as the context lasts; RuntimeError with the end of its log where it does not get ready in time."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "penstock", "serve", str(model_dir), "--port", str(port), *flags]
    with tempfile.NamedTemporaryFile("w+", prefix="penstock-log-") as log:
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _gets_ready(url, process, began_s + limit_s):
                raise RuntimeError(f"the server did not get ready: {Path(log.name).read_text()[-_LOG_CHARACTERS:]}")
            ready_s = time.monotonic() - began_s
            with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
                model_name = json.loads(response.read())["data"][0]["id"]
            yield Served(url, model_name, ready_s, process.pid, Path(log.name))
        finally:
            process.terminate()
            try:
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _gets_ready(url: str, process: subprocess.Popen[bytes], deadline_s: float) -> bool:
    while process.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
        time.sleep(_POLL_S)
    return False


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found

"""Where the time of a start goes, phase by phase: one line for the log, figures for the metrics."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


class StartUp:
    """Takes the times of a start. Phases may run beside each other, in threads: their sum can exceed the whole."""

    def __init__(self, age_s: float = 0.0) -> None:
        """`age_s`: how long it has been going on."""
        self._began_s = time.monotonic() - age_s
        self.seconds: dict[str, float] = {}
        """Phase -> how long it took; once all is done "total" is the whole."""
        if age_s:
            self.note("interpreter", age_s)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times what runs inside."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.note(name, time.monotonic() - began_s)

    def note(self, name: str, took_s: float) -> None:
        """A phase took so long."""
        self.seconds[name] = self.seconds.get(name, 0.0) + took_s

    def finish(self) -> str:
        """Everything is ready; returns the line that says how long each phase took."""
        self.seconds["total"] = time.monotonic() - self._began_s
        phases = ", ".join(f"{name} {took_s:.2f}" for name, took_s in self.seconds.items() if name != "total")
        return f"Engine ready after {self.seconds['total']:.2f} s: {phases}"


def process_age_s(stat_path: Path = Path("/proc/self/stat")) -> float:
    """Seconds since this process was started (`exec`), to a hundredth; 0 where the system does not say."""
    try:
        fields = stat_path.read_text().rpartition(")")[2].split()  # from the third on: the second may hold spaces
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, ValueError, IndexError):
        return 0.0

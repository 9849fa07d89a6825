"""How far a load is: one line that changes in a terminal, a new line now and then elsewhere. On standard error."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from .runner import Progress

_TERMINAL_INTERVAL_S = 0.25
_LOG_INTERVAL_S = 10.0
_BAR_CHARACTERS = 20


class ProgressLine:
    """Shows one load's progress on `stream`."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream = stream
        self._label = label
        self._in_terminal = stream.isatty()
        self._interval_s = _TERMINAL_INTERVAL_S if self._in_terminal else _LOG_INTERVAL_S
        self._next = time.monotonic() + self._interval_s

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._interval_s
        line = f"{self._label}  {describe(progress, now)}"
        if self._in_terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{line}", end="", file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)

    def clear(self) -> None:
        if self._in_terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)


def describe(progress: Progress, now: float) -> str:
    """The state at `now` in a line."""
    done, elapsed_s = len(progress.records), max(now - progress.started, 1e-9)
    filled = _BAR_CHARACTERS * done // max(progress.num_total, 1)
    ttfts_s = sorted(ttft_s for record in progress.records[-1000:] if (ttft_s := record.ttft_s) is not None)
    ttft = f"  TTFT {1e3 * ttfts_s[len(ttfts_s) // 2]:,.0f} ms" if ttfts_s else ""
    errors = f"  {progress.num_errors:,} errors" if progress.num_errors else ""
    bar = "#" * filled + "." * (_BAR_CHARACTERS - filled)
    return (
        f"[{bar}] {done:,}/{progress.num_total:,}"
        f"  {progress.num_in_flight:,} in flight"
        f"  {progress.num_chunks / elapsed_s:,.0f} chunks/s{ttft}{errors}  {elapsed_s:.0f} s"
    )

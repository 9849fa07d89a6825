"""Progress of something that takes bytes and seconds: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, TextIO

LINE_INTERVAL_S = 5.0
"""Between two lines, where there is no terminal."""


class ByteProgress:
    """Reports to `stream` how many of `total_bytes` are done. A context manager; the last line says how long it took."""

    def __init__(self, description: str, total_bytes: int, stream: TextIO) -> None:
        self.description, self.total_bytes, self.stream = description, total_bytes, stream
        self.done_bytes = 0
        self._started_s = self._last_line_s = time.monotonic()
        self._bar = _make_bar(description, total_bytes, stream) if stream.isatty() else None

    def advance(self, num_bytes: int) -> None:
        """This many more bytes are done."""
        self.done_bytes += num_bytes
        if self._bar is not None:
            self._bar.update(num_bytes)
        elif time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = time.monotonic()
            self._print(f"{self.description}: {format_bytes(self.done_bytes)} of {format_bytes(self.total_bytes)}")

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            took_s = time.monotonic() - self._started_s
            self._print(f"{self.description}: {format_bytes(self.done_bytes)} in {took_s:.1f} s")

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def _make_bar(description: str, total_bytes: int, stream: TextIO) -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(total=total_bytes, desc=description, unit="B", unit_scale=True, unit_divisor=1024, file=stream, leave=False)


def format_bytes(num_bytes: int) -> str:
    """For people: 512 B, 1.5 MiB, 15.0 GiB."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    size, unit = num_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size < 1023.95:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}"

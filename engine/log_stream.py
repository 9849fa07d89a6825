"""Where the engine writes what it has to say."""

from __future__ import annotations

import contextlib
from typing import Any, TextIO


class SteadyStream:
    """A text stream whose writes do not fail: a full disk or a reader that is gone costs the line, not the process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes if that is possible."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes if that is possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

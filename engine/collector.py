"""When Python's garbage collector may run: never while steps wait for it.

Nearly everything is freed by counting references. What is left in cycles, after exceptions mostly, is collected when the engine
has nothing to do, and once in MAX_BUSY_S what is new since then; what existed at the start is not looked at again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

MAX_BUSY_S = 60.0


class Collector:
    """Collects when told that it is a good moment."""

    def __init__(self, now_s: float) -> None:
        self._last_s = now_s

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """No automatic collections meanwhile."""
        was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            yield
        finally:
            gc.unfreeze()
            if was_enabled:
                gc.enable()

    def on_idle(self, now_s: float) -> None:
        """Work has come to an end."""
        gc.collect()
        self._last_s = now_s

    def on_step(self, now_s: float) -> None:
        """A step is done and more is to do."""
        if now_s - self._last_s > MAX_BUSY_S:
            gc.collect(0)
            self._last_s = now_s

"""Python's garbage collector in a frontend: seldom, and never over what was there before the first request.

Nearly everything is freed by counting references. A full collection looks at every object of every open stream, which stops
them all for tens of milliseconds, and finds next to nothing.
"""

from __future__ import annotations

import gc

THRESHOLDS = (10_000, 100, 100)
"""Python's own are 700, 10, 10."""


def calm_collector() -> None:
    """To be called when everything that lasts has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)

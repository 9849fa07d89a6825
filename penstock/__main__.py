"""`penstock` on the command line; `python -m penstock` is the same."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import TextIO, cast


def main() -> int:
    """Runs one command and returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)  # before the imports, which take their time
    _open_standard_streams()
    from .cli import run
    from .log_stream import SteadyStream

    sys.stderr = cast(TextIO, SteadyStream(sys.stderr))
    exit_code = run(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends anyway
    return exit_code


def _leave(number: int, frame: FrameType | None) -> None:
    """Until a command handles signals by itself it has nothing to finish."""
    raise SystemExit(0)


def _open_standard_streams() -> None:
    """Opens what of 0, 1 and 2 was closed on /dev/null: else the next socket gets that number, and children overwrite it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())

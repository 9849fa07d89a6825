"""`penstock` on the command line; `python -m penstock` is the same."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import TextIO, cast

_IMPORT_MACHINERY = "<frozen importlib._bootstrap>"


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
    """Until a command handles signals by itself it has nothing to finish.

    In the middle of an import it goes without unwinding: modules wrap or swallow what is raised in them, and the process would
    end with a traceback or not at all.
    """
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_MACHINERY:
            os._exit(0)
        frame = frame.f_back
    raise SystemExit(0)


def _open_standard_streams() -> None:
    """Opens what of 0, 1 and 2 was closed on /dev/null: else the next socket gets that number, and children overwrite it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())

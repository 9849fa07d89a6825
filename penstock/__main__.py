"""`penstock` on the command line; `python -m penstock` is the same."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs one command and returns its exit code."""
    from .cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

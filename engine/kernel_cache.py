"""Where Triton keeps compiled kernels: a directory that outlives the process, so that only a first start compiles them."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "TRITON_CACHE_DIR"


def keep_kernels(environment: MutableMapping[str, str], cache_dir: Path) -> None:
    """Names `cache_dir`/triton in Triton's variable, unless the user has set that; to be called before Triton is imported.

    Where nothing can be written there, kernels live in a private directory that goes with the process.
    """
    if environment.get(VARIABLE):
        return
    directory = cache_dir / "triton"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_writable = os.access(directory, os.W_OK | os.X_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        print(
            f"Kernels are compiled anew at each start: {directory} cannot be written to; set {VARIABLE}",
            file=sys.stderr,
            flush=True,
        )
        directory = Path(tempfile.mkdtemp(prefix="penstock-triton-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    environment[VARIABLE] = str(directory)

"""What every test gets: fixed seeds, GPU tests only on a GPU, and fixtures that catch unwritten memory and leftover processes.

torch is imported only by tests that ask for it. Without a CUDA device Triton's kernels are interpreted, on CPU tensors.
"""

from __future__ import annotations

import ctypes
import functools
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SEED = 20261123
EXIT_GRACE_S = 5.0


@functools.cache
def _has_cuda() -> bool:
    """Asks the driver itself: importing torch takes seconds that most tests need not spend."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


if not _has_cuda():
    # Triton decides when a kernel is defined, so this comes before any import of one, and holds for the whole process.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not _has_cuda():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers for each test, whatever ran before it."""
    random.seed(SEED)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(SEED)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(SEED)


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that torch hands out uninitialised is full of NaN or the smallest integer: who forgets to write it is seen."""
    import torch

    def poisoning(allocate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(allocate)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                tensor.data.fill_(float("nan"))
            elif tensor.dtype not in (torch.bool, torch.uint8) and not tensor.is_complex():
                tensor.data.fill_(torch.iinfo(tensor.dtype).min)
            return tensor

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))


def processes_with(environment_entry: str) -> dict[int, str]:
    """Running processes (no zombies) that were started with this "NAME=value": process id -> command line."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if environment_entry.encode() not in (directory / "environ").read_bytes().split(b"\0"):
                continue
            if (directory / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.fixture
def no_process_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Fails a test whose processes, or their children, outlive it; yields the environment entry they are known by."""
    tag = uuid.uuid4().hex
    monkeypatch.setenv("PENSTOCK_TEST_PROCESS", tag)
    entry = f"PENSTOCK_TEST_PROCESS={tag}"
    yield entry
    deadline = time.monotonic() + EXIT_GRACE_S
    while (left := processes_with(entry)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"these processes outlived the test: {left}"

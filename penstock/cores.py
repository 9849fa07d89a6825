"""The CPU cores that this process may use, and how a server divides them between its engine and its frontends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_FRONTENDS = 8
ENGINE_CORES = 2
"""At least: for its main thread, and for those that read and copy."""


def num_usable() -> int:
    """Cores this process may keep busy: those of its affinity mask, as far as its control groups' quota lets it."""
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(_own_group(), Path("/sys/fs/cgroup"))])))


def frontends_for(num_cores: int) -> int:
    """How many frontends suit a server on so many cores: 1 up to five cores, 3 on eight, 6 on sixteen."""
    return max(1, min(MOST_FRONTENDS, num_cores * 3 // 8))


@dataclass(frozen=True, slots=True)
class Division:
    """Who runs where."""

    engine: tuple[int, ...]
    frontends: tuple[tuple[int, ...], ...]


def divide(cores: Sequence[int], num_frontends: int) -> Division | None:
    """A core for each frontend, which nobody else has, and the rest for the engine; None where there are too few."""
    if len(cores) < num_frontends + ENGINE_CORES:
        return None
    return Division(tuple(cores[:-num_frontends]), tuple((core,) for core in cores[-num_frontends:]))


def _own_group() -> str:
    """The path of this process in the tree of control groups, version 2."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                return line.removeprefix("0::/")
    return ""


def _quotas(group: str, root: Path) -> list[float]:
    """The quotas in cores of this group and all those that it is part of; version 1's where that is mounted."""
    files = [[folder / "cpu.max"] for folder in (root / group, *(root / group).parents) if folder.is_relative_to(root)]
    files.append([root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us"])
    quotas = []
    for names in files:
        with contextlib.suppress(OSError, ValueError):  # it is not there, or says "max"
            quota, period = " ".join(name.read_text() for name in names).split()
            if int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return quotas

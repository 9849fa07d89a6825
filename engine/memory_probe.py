"""How much memory there is: the GPU's as CUDA reports it, the machine's bounded by the control groups we run in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Of the device that holds weights and KV cache, before either is there."""

    device: str
    """"cpu" or "cuda"."""
    total_bytes: int
    free_bytes: int


def probe_memory(device: str) -> DeviceMemory:
    """The memory of "cpu", "cuda" or "cuda:N"."""
    if device.startswith("cpu"):
        return probe_cpu()
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info(torch.device(device))
    return DeviceMemory("cuda", total_bytes, free_bytes)


def probe_cpu(root: Path = Path("/")) -> DeviceMemory:
    """What the machine has available, or less where a control group (v1 or v2) on the way up sets a limit.

    Page cache that the kernel can drop counts as free. `root` is the file system's root.
    """
    meminfo = _read_table(root / "proc/meminfo", scale=1024)
    total_bytes, free_bytes = meminfo["MemTotal:"], meminfo.get("MemAvailable:", meminfo["MemFree:"])
    for limit_bytes, used_bytes in _cgroup_limits(root):
        total_bytes = min(total_bytes, limit_bytes)
        free_bytes = min(free_bytes, max(0, limit_bytes - used_bytes))
    return DeviceMemory("cpu", total_bytes, free_bytes)


def _cgroup_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use without droppable page cache) of every control group above us that has a limit."""
    limits = []
    for hierarchy, controllers, path in _memberships(root):
        if hierarchy == "0" and not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = (
                root / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        # Without a cgroup namespace a container sees its path on the host, which is not mounted: its own group is the base.
        group = base / path.strip("/")
        while True:
            limit_bytes, used_bytes = _read_int(group / names[0]), _read_int(group / names[1])
            if limit_bytes is not None and used_bytes is not None:
                limits.append((limit_bytes, used_bytes - _read_table(group / "memory.stat").get(names[2], 0)))
            if group == base:
                break
            group = group.parent
    return limits


def _memberships(root: Path) -> list[tuple[str, str, str]]:
    """(hierarchy id, controllers, path) of the control groups this process is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [(entry[0], entry[1], entry[2]) for entry in fields if len(entry) == 3 and ".." not in entry[2].split("/")]


def _read_int(path: Path) -> int | None:
    """The number in a control file; None where there is none ("max", no such file)."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _read_table(path: Path, scale: int = 1) -> dict[str, int]:
    """Lines of "name number ..."."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) * scale for row in rows if len(row) >= 2 and row[1].isdigit()}

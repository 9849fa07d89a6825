"""Free memory is the machine's, or less where a control group says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.engine.memory_probe import DeviceMemory, probe_cpu, probe_memory

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system of a machine with 64 GiB, 48 of them available."""
    put(
        tmp_path / "proc/meminfo",
        f"MemTotal: {64 << 20} kB\nMemFree: {1 << 20} kB\nMemAvailable: {48 << 20} kB\nHugePages: 0\n",
    )
    return tmp_path


def put(path: Path, content: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def put_v2(group: Path, limit: str | int, used: int, cache: int = 0) -> None:
    put(group / "memory.max", limit)
    put(group / "memory.current", used)
    put(group / "memory.stat", f"anon 5\ninactive_file {cache}\nactive_file 7")


def put_v1(group: Path, limit: int, used: int, cache: int = 0) -> None:
    put(group / "memory.limit_in_bytes", limit)
    put(group / "memory.usage_in_bytes", used)
    put(group / "memory.stat", f"inactive_file 1\ntotal_inactive_file {cache}")


def test_without_control_groups_it_is_what_the_kernel_calls_available(root: Path) -> None:
    assert probe_cpu(root) == DeviceMemory("cpu", 64 * GIB, 48 * GIB)


def test_a_v2_limit_bounds_it_and_droppable_cache_counts_as_free(root: Path) -> None:
    put(root / "proc/self/cgroup", "0::/")
    put_v2(root / "sys/fs/cgroup", 8 * GIB, used=5 * GIB, cache=2 * GIB)
    assert probe_cpu(root) == DeviceMemory("cpu", 8 * GIB, 5 * GIB)


def test_the_tightest_v2_group_on_the_way_up_counts(root: Path) -> None:
    put(root / "proc/self/cgroup", "0::/outer/inner")
    put_v2(root / "sys/fs/cgroup/outer", 4 * GIB, used=3 * GIB)
    put_v2(root / "sys/fs/cgroup/outer/inner", "max", used=GIB)
    assert probe_cpu(root) == DeviceMemory("cpu", 4 * GIB, GIB)


def test_a_v1_limit_bounds_it(root: Path) -> None:
    put(root / "proc/self/cgroup", "5:devices:/x\n4:cpu,memory:/jobs/a\n0::/")
    put_v1(root / "sys/fs/cgroup/memory/jobs/a", 2 * GIB, used=GIB, cache=GIB // 2)
    put_v1(root / "sys/fs/cgroup/memory", 2**63 - 4096, used=9 * GIB)
    assert probe_cpu(root) == DeviceMemory("cpu", 2 * GIB, 3 * GIB // 2)


def test_a_containers_own_group_is_found_where_the_hosts_path_is_not_mounted(root: Path) -> None:
    put(root / "proc/self/cgroup", "4:memory:/docker/0123")
    put_v1(root / "sys/fs/cgroup/memory", 2 * GIB, used=GIB)
    assert probe_cpu(root) == DeviceMemory("cpu", 2 * GIB, GIB)


def test_a_group_over_its_limit_has_nothing_free(root: Path) -> None:
    put(root / "proc/self/cgroup", "0::/")
    put_v2(root / "sys/fs/cgroup", GIB, used=GIB + 4096)
    assert probe_cpu(root).free_bytes == 0


@pytest.mark.parametrize("content", ["", "0", "0::", "nonsense\n::\n", "0::/../../etc"])
def test_unreadable_memberships_mean_no_limit(content: str, root: Path) -> None:
    put(root / "proc/self/cgroup", content)
    assert probe_cpu(root) == DeviceMemory("cpu", 64 * GIB, 48 * GIB)


def test_this_machine_has_memory() -> None:
    memory = probe_memory("cpu")
    assert memory.device == "cpu"
    assert 0 < memory.free_bytes <= memory.total_bytes

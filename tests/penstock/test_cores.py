from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock import cores, flag_values


@pytest.mark.parametrize(("num_cores", "num_frontends"), [(1, 1), (2, 1), (4, 1), (8, 3), (16, 6), (24, 8), (256, 8)])
def test_frontends_by_cores(num_cores: int, num_frontends: int) -> None:
    assert cores.frontends_for(num_cores) == num_frontends


def test_auto_counts_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4, 20)))
    monkeypatch.setattr(cores, "_quotas", lambda group, root: [])
    assert flag_values.frontend_count("auto") == 6
    monkeypatch.setattr(cores, "_quotas", lambda group, root: [8.5, 12.0])
    assert flag_values.frontend_count("auto") == 3
    monkeypatch.setattr(cores, "_quotas", lambda group, root: [0.5])
    assert flag_values.frontend_count("auto") == 1
    assert flag_values.frontend_count("5") == 5


def test_the_quotas_of_a_group_and_all_above_it_count(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "outer" / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cpu.max").write_text("100000 100000\n")
    assert cores._quotas("outer/inner", tmp_path) == [2.5]


def test_a_quota_of_the_first_version_counts_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores._quotas("", tmp_path) == []
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    assert cores._quotas("", tmp_path) == [4.0]


def test_frontends_get_a_core_each_and_the_engine_the_rest() -> None:
    division = cores.divide([0, 1, 4, 5, 6, 7], 3)
    assert division is not None
    assert division.engine == (0, 1, 4)
    assert division.frontends == ((5,), (6,), (7,))
    assert cores.divide([0, 1, 2, 3], 3) is None

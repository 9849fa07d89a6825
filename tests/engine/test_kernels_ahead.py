"""Children compile kernels beside an engine's start: once, for this device, without outliving it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.engine import kernels_ahead
from penstock.engine.config import EngineConfig
from penstock.engine.cuda_context import CudaDevice
from penstock.engine.kernels_ahead import KernelJob, KernelsAhead, num_processes
from tests.engine.test_memory import LLAMA_8B

H200 = CudaDevice(name="NVIDIA H200", total_bytes=140 << 30, major=9, minor=0, num_multiprocessors=132, shared_bytes=227 << 10)
CONFIG = EngineConfig(model="a", served_model_names=("b",), max_num_seqs=7, socket_dir=Path("/sockets"))


class Children:
    """Stands in for the processes' module."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        monkeypatch.setattr(kernels_ahead, "MODULE", "child")
        monkeypatch.setattr(kernels_ahead, "num_processes", lambda num_cores: 2)

    def ahead(self, program: str, config: EngineConfig = CONFIG, device: CudaDevice | None = H200) -> KernelsAhead:
        """The parent of children that run `program`."""
        (self._directory / "child.py").write_text(program)
        found: Future[CudaDevice | None] = Future()
        found.set_result(device)
        environment = {"TRITON_CACHE_DIR": str(self._directory / "triton"), "PYTHONPATH": str(self._directory)}
        return KernelsAhead(config, self._directory, LLAMA_8B, found, environment)

    @property
    def notes(self) -> int:
        """How many kinds of engine are known to be compiled."""
        return len(list((self._directory / "triton").glob("penstock-*")))


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    pytest.importorskip("triton")
    return Children(tmp_path, monkeypatch)


def wait(ahead: KernelsAhead) -> list[int | None]:
    with ahead:
        ahead.wait()
    return [child.returncode for child in ahead._children]


SUCCEEDS = """
import json, os, sys
assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
job = json.loads(sys.stdin.buffer.readline())
assert job["config"]["max_num_seqs"] in (7, 8) and os.path.isdir(job["claims_dir"])
"""


def test_kernels_are_compiled_once_for_each_kind_of_engine_and_device(children: Children) -> None:
    other_device = replace(H200, name="NVIDIA H100 PCIe", num_multiprocessors=114)
    assert wait(children.ahead(SUCCEEDS)) == [0, 0]
    assert wait(children.ahead(SUCCEEDS)) == []
    assert wait(children.ahead(SUCCEEDS, replace(CONFIG, seed=3, socket_dir=None))) == []
    assert wait(children.ahead(SUCCEEDS, replace(CONFIG, max_num_seqs=8))) == [0, 0]
    assert wait(children.ahead(SUCCEEDS, device=other_device)) == [0, 0]
    assert children.notes == 3


def test_a_child_that_fails_costs_the_next_start_only_time(children: Children) -> None:
    assert wait(children.ahead("raise SystemExit(1)")) == [1, 1]
    assert children.notes == 0


def test_without_a_device_no_child_is_started(children: Children) -> None:
    assert wait(children.ahead(SUCCEEDS, device=None)) == []
    assert children.notes == 0


def test_children_do_not_outlive_the_start(children: Children) -> None:
    with children.ahead("import time; time.sleep(600)") as ahead:
        ahead._thread.join()
        assert [child.poll() for child in ahead._children] == [None, None]
        assert ahead._claims_dir is not None
    assert [child.returncode for child in ahead._children] == [-9, -9]
    assert not Path(ahead._claims_dir).exists()


def test_a_job_is_a_line() -> None:
    job = KernelJob(replace(CONFIG, socket_dir=None, served_model_names=()), "/model", H200, "/claims")
    assert job.to_line().count(b"\n") == 1
    assert KernelJob.from_line(job.to_line()) == job


@pytest.mark.parametrize(("num_cores", "expected"), [(1, 1), (2, 1), (4, 2), (16, 12), (128, 12)])
def test_two_cores_are_left_for_the_rest(num_cores: int, expected: int) -> None:
    assert num_processes(num_cores) == expected


def test_children_take_one_kernel_after_the_other(tmp_path: Path) -> None:
    kernel_process = pytest.importorskip("penstock.engine.kernel_process")
    kernels = [lambda index=index: index for index in range(5)]
    first, second = (kernel_process.claimed(kernels, tmp_path) for _ in range(2))
    taken = [next(first)(), next(second)(), next(second)(), next(first)(), next(second)()]
    assert taken == [0, 1, 2, 3, 4]
    assert [*first, *second] == []


def test_one_layer_of_each_sort_is_enough() -> None:
    with_layers_that_differ = pytest.importorskip("penstock.engine.kernel_process").with_layers_that_differ
    assert with_layers_that_differ(LLAMA_8B).num_layers == 2
    windows = (None, None, None, 4096, *LLAMA_8B.layer_windows[4:])
    mixed = with_layers_that_differ(replace(LLAMA_8B, layer_windows=windows))
    assert (mixed.num_layers, mixed.layer_windows) == (4, windows[:4])
    single = replace(LLAMA_8B, num_layers=1, layer_windows=(None,))
    assert with_layers_that_differ(single) == single


FIND = """
import sys
from penstock.engine.kernel_process import find
from penstock.engine.kernels_ahead import KernelJob
print(len(find(KernelJob.from_line(sys.stdin.buffer.readline()))))
"""


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_kernels_of_an_engine_are_found_without_a_device(deterministic: bool) -> None:
    pytest.importorskip("triton")
    from penstock.engine.model_files import resolve_model

    config = EngineConfig(max_model_len=64, dtype="bfloat16", deterministic=deterministic)
    model_dir = resolve_model(config).model_dir
    job = KernelJob(config, str(model_dir), H200, "/claims")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, "-c", FIND],
        input=job.to_line(),
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode()
    assert 15 < int(child.stdout) < 80


START = """
from penstock.engine.build import load_engine
from penstock.engine.config import EngineConfig
load_engine(EngineConfig(device="cuda", max_model_len=256, max_num_seqs=64, dtype="bfloat16", kv_cache_memory_bytes=1 << 28))
"""


@pytest.mark.gpu
def test_a_start_launches_nothing_that_was_not_compiled_ahead(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", START], env=environment, timeout=110, check=True)
    (done,) = tmp_path.glob("penstock-*")
    late = [path.name for path in tmp_path.rglob("*.cubin") if path.stat().st_mtime > done.stat().st_mtime]
    assert late == []

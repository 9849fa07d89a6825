"""A start is timed, keeps its kernels and ends in a generation."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.engine.build import load_engine
from penstock.engine.config import EngineConfig
from penstock.engine.errors import EngineStartError
from penstock.engine.kernel_cache import keep_kernels
from penstock.engine.plan import PendingStep, StepPlan, StepResult
from penstock.engine.start_up import StartUp, process_age_s
from penstock.engine.toy_config import ToyConfig
from penstock.engine.warm_up import warm_up
from tests.engine.toy_engine import make_core, make_scheduler
from tests.toy_model import make_toy_model

PHASES = {"model files", "imports", "memory plan", "model", "KV cache", "weights made", "graphs", "warm-up"}


def test_phases_add_up_and_the_last_line_names_them() -> None:
    start_up = StartUp(age_s=2.0)
    for _ in range(2):
        with start_up.phase("reading"):
            time.sleep(0.01)
    start_up.note("copying", 1.25)
    assert re.fullmatch(r"Engine ready after 2.\d\d s: interpreter 2.00, reading 0.0\d, copying 1.25", start_up.finish())
    assert start_up.seconds["reading"] >= 0.02


def test_a_process_knows_its_age() -> None:
    program = "import time; time.sleep(0.3)\nfrom penstock.engine.start_up import process_age_s\nprint(process_age_s())"
    age_s = float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60).stdout)
    assert 0.3 < age_s < 30.0
    assert process_age_s(Path("/no/such/file")) == 0.0


def test_a_start_is_in_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    start_up = StartUp()
    config = EngineConfig(device="cpu", num_gpu_blocks_override=8, load_format="dummy", max_model_len=64)
    core = load_engine(config, start_up).core
    start_up.finish()
    assert set(start_up.seconds) == PHASES | {"total"}
    metrics = {metric.name: metric for metric in core.scheduler.metrics.export(core.scheduler.gauges)}
    samples = {sample.labels["phase"]: sample.value for sample in metrics["startup_seconds"].samples}
    assert samples == start_up.seconds
    # The first generation is nobody's request.
    assert metrics["requests_admitted"].samples[0].value == 0
    assert core.scheduler.gauges.num_free_blocks == 8


def test_without_a_timed_start_there_is_no_such_figure() -> None:
    scheduler = make_scheduler()
    assert "startup_seconds" not in {metric.name for metric in scheduler.metrics.export(scheduler.gauges)}


@pytest.fixture
def toy(tmp_path: Path) -> ToyConfig:
    return ToyConfig.from_dir(make_toy_model(tmp_path / "toy"))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("max_model_len", [1, 2, 5, 200])
def test_a_warm_up_generates_and_leaves_nothing(toy: ToyConfig, max_model_len: int, overlap: bool) -> None:
    core = make_core(toy, overlap=overlap, max_model_len=max_model_len)
    warm_up(core)
    assert not core.has_work
    assert (core.num_completed_steps > 0) == (max_model_len > 1)
    core.scheduler.blocks.check_idle()


class BrokenRunner:
    """A runner whose steps all fail, or whose requests do."""

    def __init__(self, result: Callable[[StepPlan], StepResult]) -> None:
        self.result = result

    def launch(self, plan: StepPlan) -> PendingStep:
        class Pending:
            def wait(_self) -> StepResult:
                return self.result(plan)

        return Pending()

    def on_idle(self) -> bool:
        return False


def test_a_model_that_cannot_generate_stops_the_start(toy: ToyConfig) -> None:
    def raises(plan: StepPlan) -> StepResult:
        raise RuntimeError("no kernel image is available")

    with pytest.raises(EngineStartError, match="the first generation failed: RuntimeError: no kernel image is available"):
        warm_up(make_core(toy, runner=BrokenRunner(raises)))


def test_kernels_are_kept_in_the_cache(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    keep_kernels(environment, tmp_path / "cache")
    assert environment == {"TRITON_CACHE_DIR": str(tmp_path / "cache" / "triton")}
    assert (tmp_path / "cache" / "triton").is_dir()


def test_the_users_own_place_is_left_alone(tmp_path: Path) -> None:
    environment = {"TRITON_CACHE_DIR": "/somewhere"}
    keep_kernels(environment, tmp_path / "cache")
    assert environment == {"TRITON_CACHE_DIR": "/somewhere"}
    assert not (tmp_path / "cache").exists()


def test_where_nothing_can_be_written_kernels_go_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = (
        "import sys, pathlib\nfrom penstock.engine.kernel_cache import keep_kernels\nenvironment = {}\n"
        "keep_kernels(environment, pathlib.Path(sys.argv[1]))\nprint(environment['TRITON_CACHE_DIR'])\n"
        "assert pathlib.Path(environment['TRITON_CACHE_DIR']).stat().st_mode & 0o777 == 0o700\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")], capture_output=True, text=True, check=True, timeout=60
    )
    assert "set TRITON_CACHE_DIR" in child.stderr
    assert not Path(child.stdout.strip()).exists()

"""What a GPU adds to the runner, on the CPU: padded sizes, and graphs that are stood for by the calls they would replay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from penstock.engine import graph_schedule
from penstock.engine.graphs import CapturedStep, StepGraphs
from penstock.engine.step_sizes import StepSize
from tests.engine.runner_driver import DRAWN, Driver, make_prompts, requests_for
from tests.engine.tiny_model import VOCAB_SIZE, naive_greedy

WINDOWS = [(None, None), (None, 5, 9)]
SPECIAL: list[dict[str, Any]] = [{"logprobs": 2}, {"min_tokens": 5}, {}, {"presence_penalty": 0.4, "temperature": 0.8}]


class Replay:
    """What stands for a graph."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        self._work()


class StandInGraphs(StepGraphs):
    """Warms up as always, and captures calls."""

    def _capture(self, size: StepSize) -> CapturedStep:
        program, logits = self._program, torch.full((size.num_rows, VOCAB_SIZE), torch.nan)

        def forward() -> None:
            logits.copy_(program.logits(program.hidden_states(size), size))

        sampling: Any = {
            has_filters: Replay(partial(program.sample, logits, has_filters=has_filters)) for has_filters in (False, True)
        }
        stand_in: Any = Replay(forward)
        return CapturedStep(stand_in, logits, sampling)


@pytest.fixture
def with_stand_ins(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], StandInGraphs]:
    """Gives a driver's runner padded sizes and graphs that are captured on idle and whenever steps want them."""
    monkeypatch.setattr(graph_schedule, "CAPTURE_SHARE", 1e6)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))

    def equip(driver: Driver) -> StandInGraphs:
        runner = driver.runner
        runner._pads = True
        graphs = StandInGraphs(runner._program, runner._sizes, driver.device, make_empty=runner._sender.send_padding)
        runner._graphs = graphs
        return graphs

    return equip


def padded(driver: Driver) -> Driver:
    driver.runner._pads = True
    return driver


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_padding_changes_no_token(windows: tuple[int | None, ...], chunk: int | None) -> None:
    driver = padded(Driver(windows))
    driver.poison_kv_cache()
    prompts = make_prompts((3, 17, 30))
    outputs = driver.run(requests_for(prompts), chunk, steps_ahead=1)
    assert outputs == [naive_greedy(driver.model, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("captures_first", [True, False])
@pytest.mark.parametrize("settings", [DRAWN, SPECIAL, [{"prompt_logprobs": 1, "top_k": 9, "temperature": 1.0}]], ids=str)
def test_steps_that_are_replayed_give_the_same(
    settings: list[dict[str, Any]], captures_first: bool, with_stand_ins: Callable[[Driver], StandInGraphs]
) -> None:
    prompts = make_prompts()
    eager, driver = requests_for(prompts, *settings), Driver((None, 5))
    padded(Driver((None, 5))).run(eager, chunk=9)
    graphs = with_stand_ins(driver)
    while captures_first and driver.runner.on_idle():
        pass
    replayed = requests_for(prompts, *settings)
    driver.run(replayed, chunk=9, steps_ahead=2)
    assert [request.output for request in replayed] == [request.output for request in eager]
    assert [[result.logprobs for result in request.results] for request in replayed] == [
        [result.logprobs for result in request.results] for request in eager
    ]
    forward: list[Any] = [captured.forward for captured in graphs._captured.values()]
    assert sum(graph.num_replays for graph in forward) > 5


def test_steps_in_a_row_are_replayed_without_the_host(with_stand_ins: Callable[[Driver], StandInGraphs]) -> None:
    prompts = make_prompts()
    expected = padded(Driver()).run(requests_for(prompts, *DRAWN[:3]))
    driver = Driver()
    with_stand_ins(driver)
    while driver.runner.on_idle():
        pass
    assert driver.run(requests_for(prompts, *DRAWN[:3]), num_decode_steps=4, steps_ahead=1) == expected


def test_a_capture_that_fails_disturbs_nothing(
    with_stand_ins: Callable[[Driver], StandInGraphs], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = make_prompts()
    expected = padded(Driver()).run(requests_for(prompts, *DRAWN))
    driver = Driver()
    graphs = with_stand_ins(driver)

    def fail(size: StepSize) -> CapturedStep:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_capture", fail)
    assert driver.run(requests_for(prompts, *DRAWN), steps_ahead=1) == expected
    assert capfd.readouterr().err.count("cannot be captured") == 1
    assert graphs._captured == {}


@pytest.mark.parametrize(
    ("limit_mib", "free_mib", "num_captures"), [(450, 9000, 5), (9000, 550, 3), (0, 9000, 0), (9000, 200, 0)]
)
def test_captures_stop_where_memory_does(
    limit_mib: int,
    free_mib: int,
    num_captures: int,
    with_stand_ins: Callable[[Driver], StandInGraphs],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each takes 100 MiB here; one is begun while the limit is not reached and 256 MiB are free."""
    driver = Driver()
    graphs = with_stand_ins(driver)
    num_begun = 0
    capture = graphs._capture

    def counting(size: StepSize) -> CapturedStep:
        nonlocal num_begun
        num_begun += 1
        return capture(size)

    monkeypatch.setattr(graphs, "_capture", counting)
    monkeypatch.setattr("penstock.engine.graphs.GRAPH_MEMORY_BYTES", limit_mib << 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((free_mib - 100 * num_begun) << 20, 9999 << 20))
    while driver.runner.on_idle():
        pass
    assert len(graphs._captured) == num_captures
    assert capfd.readouterr().err.count("No more CUDA graphs are captured") == 1

"""Steps in CUDA graphs against the same steps launched kernel by kernel, and against the clock and the memory they may take."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from penstock.engine import graph_schedule, graphs
from penstock.engine.graphs import StepGraphs
from penstock.engine.step_sizes import StepSize
from tests.engine.runner_driver import DRAWN, Driver, Request, make_prompts, requests_for
from tests.engine.tiny_model import is_greedy, make_model, naive_logits, tiny_config
from tests.kernels.comparing import no_waiting

pytestmark = pytest.mark.gpu
SETTINGS = [[{}], DRAWN, [{"temperature": 0.7}], [{"logprobs": 2}, {"min_tokens": 5}]]


@pytest.fixture(autouse=True)
def others_use_the_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes allocate during a capture would count as the graphs'."""
    monkeypatch.setattr(graphs, "GRAPH_MEMORY_BYTES", 1 << 50)


def driver_with_graphs(windows: tuple[int | None, ...] = (None, None), **settings: Any) -> Driver:
    """With all graphs captured."""
    driver = Driver(windows, "cuda", **settings)
    while driver.runner.on_idle():
        pass
    return driver


def graphs_of(driver: Driver) -> StepGraphs:
    assert driver.runner._graphs is not None
    return driver.runner._graphs


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("windows", "dtype", "chunk"),
    [
        ((None, None), torch.bfloat16, None),
        ((None, 20, 35), torch.bfloat16, 7),
        ((None, 20, 35), torch.float32, None),
    ],
    ids=str,
)
def test_graphs_give_bitwise_the_tokens_of_the_eager_twin(
    windows: tuple[int | None, ...], dtype: torch.dtype, chunk: int | None, settings: list[dict[str, Any]]
) -> None:
    prompts = make_prompts()
    captured = driver_with_graphs(windows, dtype=dtype)
    eager = Driver(windows, "cuda", model=captured.model, dtype=dtype, uses_graphs=False)
    outputs = captured.run(requests_for(prompts, *settings), chunk, steps_ahead=1)
    assert outputs == eager.run(requests_for(prompts, *settings), chunk)
    assert len(graphs_of(captured)._captured) > 4


@pytest.mark.parametrize("settings", [[{}], DRAWN, [{"logit_bias": {9: 2.0}}]], ids=str)
@pytest.mark.parametrize("num_decode_steps", [2, 8])
def test_several_steps_in_one_plan_give_the_same_tokens(settings: list[dict[str, Any]], num_decode_steps: int) -> None:
    driver = driver_with_graphs()
    prompts = make_prompts()
    one_by_one = driver.run(requests_for(prompts, *settings))
    for steps_ahead in (0, 2):
        assert driver.run(requests_for(prompts, *settings), None, steps_ahead, num_decode_steps) == one_by_one


@pytest.mark.parametrize("num_requests", [1, 2, 3, 5, 6])
def test_padding_changes_nothing(num_requests: int) -> None:
    driver = driver_with_graphs((None, 20))
    driver.poison_kv_cache()
    prompts = make_prompts((40, 3, 17, 1, 33, 64)[:num_requests])
    requests = requests_for(prompts)
    outputs = driver.run(requests, chunk=30, steps_ahead=1)
    assert [request.error for request in requests] == [None] * num_requests
    assert all(is_greedy(driver.model, prompt, output, 1e-2) for prompt, output in zip(prompts, outputs, strict=True))


def test_slots_are_taken_over_while_others_go_on() -> None:
    driver = driver_with_graphs()
    prompts = make_prompts((20, 5, 9, 31, 8))
    alone = [driver.run([request])[0] for request in requests_for(prompts, *DRAWN)]
    staying = requests_for(prompts, *DRAWN)[:2]
    leaving = requests_for(prompts, *DRAWN)[2:]
    for request, num_tokens in zip(leaving, (3, 5, 4), strict=True):
        request.num_tokens = num_tokens
    coming = Request(leaving[0].slot, prompts[4], leaving[2].sampling)
    pending: list[Any] = []
    for step in range(11):
        requests = [*staying, *(leaving if step < 3 else [coming])]
        plan = driver.plan(requests)
        pending.append((plan, requests, driver.runner.launch(plan)))
    for launched in pending:
        driver.read(*launched)
    assert [request.output for request in staying] == [output[:11] for output in alone[:2]]
    assert coming.output == alone[4][:8]


@pytest.mark.parametrize("uses_graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("settings", [*SETTINGS, [{"prompt_logprobs": 2}]], ids=str)
def test_launching_does_not_wait_for_the_device(settings: list[dict[str, Any]], uses_graphs: bool) -> None:
    driver = driver_with_graphs((None, 20)) if uses_graphs else Driver((None, 20), "cuda", uses_graphs=False)
    prompts = make_prompts()
    expected = driver.run(requests_for(prompts, *settings), chunk=9)
    requests = requests_for(prompts, *settings)
    in_flight = []
    with no_waiting():
        for _ in range(10):
            plan = driver.plan(requests, chunk=9)
            in_flight.append((plan, requests, driver.runner.launch(plan)))
    for launched in in_flight:
        driver.read(*launched)
    assert [request.error for request in requests] == [None] * len(requests)
    assert all(output[: len(request.output)] == request.output for request, output in zip(requests, expected, strict=True))


def test_a_steady_decode_step_uploads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_with_graphs()
    requests = requests_for(make_prompts((2, 3, 4, 5)))
    for _ in range(3):
        driver.read(plan := driver.plan(requests), requests, driver.runner.launch(plan))
    uploads: list[object] = []
    monkeypatch.setattr("penstock.engine.step_sender.upload", lambda *args: uploads.append(args))
    for _ in range(5):
        plan = driver.plan(requests)
        assert not any(len(blocks.slots) for blocks in plan.new_blocks)
        driver.read(plan, requests, driver.runner.launch(plan))
    assert uploads == []


def test_sizes_are_captured_as_they_are_wanted_within_their_share_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_schedule, "CAPTURE_SHARE", 1e-6)
    driver = Driver(device="cuda")
    requests = requests_for(make_prompts((4, 6, 3)))
    driver.run(requests)
    assert [*graphs_of(driver)._captured] == [StepSize(4, 4, True)]


def test_two_graphs_at_start_serve_all_small_decode_steps() -> None:
    driver = Driver(device="cuda")
    driver.runner.prepare()
    assert [size.num_rows for size in graphs_of(driver)._captured] == [1, 6]


def test_no_more_is_captured_when_the_memory_is_used_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graphs, "GRAPH_MEMORY_BYTES", 0)
    driver = Driver(device="cuda")
    assert not driver.runner.on_idle()
    prompts = make_prompts()
    outputs = driver.run(requests_for(prompts))
    assert graphs_of(driver)._captured == {}
    assert capfd.readouterr().err.count("No more CUDA graphs are captured") == 1
    assert all(is_greedy(driver.model, prompt, output, 1e-2) for prompt, output in zip(prompts, outputs, strict=True))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), RuntimeError("operation not permitted")], ids=str)
def test_a_capture_that_fails_leaves_the_steps_to_the_eager_twin(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    driver = Driver(device="cuda")
    advance = driver.runner._program.advance

    def failing(*args: Any) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise error
        advance(*args)

    monkeypatch.setattr(driver.runner._program, "advance", failing)
    prompts = make_prompts()
    first = driver.run(requests_for(prompts, *DRAWN), steps_ahead=1)
    while driver.runner.on_idle():
        pass
    assert graphs_of(driver)._captured == {}
    assert driver.run(requests_for(prompts, *DRAWN), steps_ahead=1) == first
    assert capfd.readouterr().err.count("CUDA graph") == 1


def test_graphs_take_no_memory_from_step_to_step() -> None:
    driver = driver_with_graphs()
    driver.run(requests_for(make_prompts(), *DRAWN))
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        driver.run(requests_for(make_prompts(), *DRAWN), steps_ahead=1)
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_the_gpu_tells_when_steps_ran() -> None:
    driver = driver_with_graphs(times_steps=True)
    driver.run(requests_for(make_prompts()), num_decode_steps=4)
    timer = driver.runner.timer
    assert timer is not None
    timings = timer.take()
    assert sum(timing.num_steps for timing in timings) == 12
    assert [timing.num_tokens for timing in timings] == [51] + [4] * (len(timings) - 1)
    moments = [moment for timing in timings for moment in (timing.start_ms, timing.end_ms)]
    assert moments == sorted(moments)
    assert all(timing.has_graph for timing in timings)
    assert timer.take() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    on_cuda = driver_with_graphs(dtype=dtype)
    on_cpu = make_model(tiny_config(device="cuda"))
    requests = requests_for(make_prompts(), {"logprobs": 5, "prompt_logprobs": 0})
    on_cuda.run(requests, chunk=8, steps_ahead=1)
    tolerance = 1e-2 if dtype == torch.float32 else 0.15
    for request in requests:
        logits = naive_logits(on_cpu, request.prompt + request.output)
        expected = torch.log_softmax(logits.double(), 1)[len(request.prompt) - 1 : -1]
        found = [part for result in request.results for part in result.logprobs.values()]
        for position, part in enumerate(found):
            assert part.logprobs[0] == pytest.approx(expected[position][part.token_ids[0]].tolist(), abs=tolerance)

"""The step itself: overlapped like synchronous, and what a failing runner costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from penstock.engine.core import MAX_FAILURE_STREAK, EngineCore
from penstock.engine.plan import PendingStep, Runner, StepPlan, StepResult
from penstock.engine.toy_config import ToyConfig, expected_tokens
from penstock.ipc.messages import FinishReason
from tests.engine.toy_engine import Collected, finish, make_core, make_runner, make_scheduler, make_submit, run_to_end

TOY = ToyConfig(vocab_size=512)
Fails = Callable[[int, StepPlan], bool]
"""Whether the n-th launched step fails."""


@dataclass
class LatePending:
    inner: PendingStep
    fails: bool

    def wait(self) -> StepResult:
        result = self.inner.wait()
        if self.fails:
            raise RuntimeError("device lost\nwith details")
        return result


class FailingRunner:
    """A toy some of whose steps raise, when they are launched or when they are waited for."""

    def __init__(self, inner: Runner, fails: Fails, *, at_launch: bool) -> None:
        self.inner = inner
        self.fails = fails
        self.at_launch = at_launch
        self.num_launched = 0

    def launch(self, plan: StepPlan) -> PendingStep:
        self.num_launched += 1
        fails = self.fails(self.num_launched, plan)
        if fails and self.at_launch:
            raise MemoryError("no room")
        return LatePending(self.inner.launch(plan), fails)

    def on_idle(self) -> bool:
        return self.inner.on_idle()


def make_failing_core(fails: Fails, *, at_launch: bool, overlap: bool) -> EngineCore:
    scheduler = make_scheduler()
    return EngineCore(scheduler, FailingRunner(make_runner(TOY, scheduler), fails, at_launch=at_launch), overlap=overlap)


def test_overlapped_and_synchronous_steps_say_the_same() -> None:
    prompts = {key: [key * 7 % 512, *range(key)] for key in range(20)}
    told = []
    for overlap in (True, False):
        core = make_core(TOY, overlap=overlap)
        told.append(run_to_end(core, {key: make_submit(prompt, 5 + key % 7) for key, prompt in prompts.items()}).token_ids)
    assert told[0] == told[1] == {key: expected_tokens(prompt, 5 + key % 7, TOY) for key, prompt in prompts.items()}


def test_overlapped_steps_are_launched_before_the_last_one_is_read() -> None:
    events: list[str] = []

    class WatchedRunner:
        def __init__(self, inner: Runner) -> None:
            self.inner = inner
            self.num_launched = 0

        def launch(self, plan: StepPlan) -> PendingStep:
            self.num_launched += 1
            name = str(self.num_launched)
            events.append(f"launch {name}")
            pending = self.inner.launch(plan)

            class Watched:
                def wait(self) -> StepResult:
                    events.append(f"wait {name}")
                    return pending.wait()

            return Watched()

        def on_idle(self) -> bool:
            return self.inner.on_idle()

    for overlap, expected in (
        (True, ["launch 1", "launch 2", "wait 1", "launch 3", "wait 2", "wait 3"]),
        (False, ["launch 1", "wait 1", "launch 2", "wait 2", "launch 3", "wait 3"]),
    ):
        events.clear()
        scheduler = make_scheduler()
        core = EngineCore(scheduler, WatchedRunner(make_runner(TOY, scheduler)), overlap=overlap)
        run_to_end(core, {"a": make_submit([1], 3)})
        assert events == expected


@pytest.mark.parametrize("overlap", [True, False], ids=["overlapped", "synchronous"])
@pytest.mark.parametrize("at_launch", [True, False], ids=["at launch", "when waited for"])
def test_a_failed_step_costs_its_newest_request_and_no_token_of_the_others(
    at_launch: bool, overlap: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    core = make_failing_core(lambda number, _: number == 4, at_launch=at_launch, overlap=overlap)
    collected = run_to_end(core, {key: make_submit([key, 1, 2], 10) for key in range(4)})
    assert collected.finish_reasons == {
        0: FinishReason.LENGTH,
        1: FinishReason.LENGTH,
        2: FinishReason.LENGTH,
        3: FinishReason.ERROR,
    }
    for key in range(3):
        assert collected.token_ids[key] == expected_tokens([key, 1, 2], 10, TOY)
    error = collected.outputs[3][-1].error
    assert error == ("MemoryError: no room" if at_launch else "RuntimeError: device lost")
    assert "A step failed" in capsys.readouterr().err


@pytest.mark.parametrize("overlap", [True, False], ids=["overlapped", "synchronous"])
def test_an_old_request_that_breaks_every_step_is_found_and_the_engine_goes_on(overlap: bool) -> None:
    def has_poison(_: int, plan: StepPlan) -> bool:
        return any(500 in chunk.token_ids for chunk in plan.chunks)

    core = make_failing_core(has_poison, at_launch=False, overlap=overlap)
    collected = run_to_end(core, {key: make_submit([500 if key == 0 else key], 10) for key in range(8)})
    assert collected.finish_reasons[0] is FinishReason.ERROR
    finish(core, collected)
    collected.expect("next")
    core.submit("next", make_submit([1, 2], 20))
    finish(core, collected)
    assert collected.token_ids["next"] == expected_tokens([1, 2], 20, TOY)


def test_a_runner_that_only_fails_stops_the_engine() -> None:
    core = make_failing_core(lambda number, plan: True, at_launch=False, overlap=True)
    collected = Collected()

    def feed_and_step() -> None:
        for key in range(10 * MAX_FAILURE_STREAK):
            collected.expect(key)
            core.submit(key, make_submit([1]))
            collected.take(core.step())

    with pytest.raises(RuntimeError, match="device lost"):
        feed_and_step()
    assert len(collected.finish_reasons) >= MAX_FAILURE_STREAK


def test_good_steps_end_a_streak_of_failures() -> None:
    failed_steps: list[int] = []

    def fails(number: int, _: StepPlan) -> bool:
        if number % 25 == 0:
            failed_steps.append(number)
        return number % 25 == 0

    core = make_failing_core(fails, at_launch=False, overlap=False)
    collected = run_to_end(core, {key: make_submit([key], 60) for key in range(30)})
    num_failed = sum(reason is FinishReason.ERROR for reason in collected.finish_reasons.values())
    assert num_failed == len(failed_steps) > 5, "each failure cost one request"


def test_completed_steps_are_counted() -> None:
    core = make_core(TOY)
    run_to_end(core, {"a": make_submit([1], 3)})
    assert core.num_completed_steps == 3

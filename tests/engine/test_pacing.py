"""How much a step takes on: prompts next to decodes, and decode steps in a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.engine.decoding import decode_rows
from penstock.engine.pacing import MAX_DECODE_STEPS, TimedRunAhead
from penstock.engine.plan import StepPlan, StepResult
from penstock.engine.running import Running
from penstock.engine.scheduler import Scheduler
from penstock.engine.step_draft import LaunchedStep
from penstock.engine.toy_config import ToyConfig, expected_tokens
from penstock.ipc.messages import FinishReason
from tests.engine.plan_reader import sampled_everywhere
from tests.engine.toy_engine import FixedPromptBudget, FixedRunAhead, make_core, make_scheduler, make_submit, run_to_end


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan()
    assert plan is not None
    return plan


def run_step(scheduler: Scheduler, token_id: int = 7) -> StepPlan:
    plan = planned(scheduler)
    scheduler.update(plan, StepResult(token_ids=sampled_everywhere(plan, token_id)))
    return plan


def decoding(num_steps: int = 4, max_tokens: int = 20, *, scheduling: dict[str, Any] | None = None, **fields: Any) -> Scheduler:
    """A scheduler whose one request is about to decode."""
    scheduler = make_scheduler(run_ahead=FixedRunAhead(num_steps), **(scheduling or {}))
    scheduler.submit("a", make_submit([1, 2, 3], max_tokens, **fields))
    run_step(scheduler)
    return scheduler


def test_several_steps_in_a_plan_have_their_blocks_and_yield_their_tokens() -> None:
    scheduler = decoding(6)
    plan = planned(scheduler)
    assert plan.num_decode_steps == 6
    (new,) = plan.new_blocks
    assert (new.slots.tolist(), new.columns.tolist()) == ([0, 0], [1, 2]), "tokens 4 .. 9 are computed"
    result = StepResult(token_ids=np.arange(10, 16, dtype=np.int32)[:, None])
    (output,) = scheduler.update(plan, result)
    assert (output.position, output.token_ids, output.finish_reason) == (1, [10, 11, 12, 13, 14, 15], None)
    scheduler.check_integrity()


def test_an_arrival_makes_the_next_plan_a_single_step() -> None:
    scheduler = decoding(8)
    assert planned(scheduler).num_decode_steps == 8
    scheduler.submit("b", make_submit([4] * 5, 20))
    plan = planned(scheduler)
    assert (plan.num_decode_steps, len(plan.decode_slots), len(plan.chunks)) == (1, 1, 1)
    assert planned(scheduler).num_decode_steps == 8


def test_nobody_is_planned_beyond_max_tokens() -> None:
    scheduler = decoding(8, max_tokens=6)
    plan = planned(scheduler)
    assert plan.num_decode_steps == 5
    assert scheduler.plan() is None
    (output,) = scheduler.update(plan, StepResult(token_ids=sampled_everywhere(plan, 7)))
    assert (len(output.token_ids), output.finish_reason) == (5, FinishReason.LENGTH)


def test_what_comes_after_a_stop_is_not_told() -> None:
    scheduler = decoding(5, scheduling={"eos_token_ids": [3]})
    plan, late = planned(scheduler), planned(scheduler)
    (output,) = scheduler.update(plan, StepResult(token_ids=np.array([[8], [9], [3], [8], [3]], np.int32)))
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([8, 9, 3], FinishReason.STOP, 3)
    assert not scheduler.update(late, StepResult(token_ids=sampled_everywhere(late, 8)))
    assert not scheduler.has_work
    scheduler.check_integrity()


@pytest.mark.parametrize("fields", [{"logprobs": 0}, {"min_tokens": 15}])
def test_who_depends_on_the_position_is_not_run_ahead(fields: dict[str, Any]) -> None:
    assert planned(decoding(8, **fields)).num_decode_steps == 1


def test_min_tokens_holds_back_only_until_they_are_there() -> None:
    scheduler = decoding(8, min_tokens=2)
    assert [run_step(scheduler).num_decode_steps for _ in range(2)] == [1, 8]


def test_running_ahead_preempts_nobody() -> None:
    scheduler = make_scheduler(num_blocks=3, run_ahead=FixedRunAhead(8), caches_prefixes=False)
    scheduler.submit("old", make_submit([1] * 3, 5))
    scheduler.submit("new", make_submit([2] * 3, 5))
    run_step(scheduler)
    plan = planned(scheduler)
    assert (plan.num_decode_steps, len(plan.decode_slots)) == (1, 2)
    assert scheduler.metrics.num_preemptions == 0


def test_tokens_do_not_depend_on_running_ahead() -> None:
    toy = ToyConfig(vocab_size=300, windows=(None, 7), eos_token_id=299, eos_one_in=30)
    core = make_core(toy, run_ahead=FixedRunAhead(1, 3, 8))
    submits = {key: make_submit([key], 60, stop_token_ids=(key,)) for key in range(20)}
    collected = run_to_end(core, submits)
    for key, submit in submits.items():
        assert collected.token_ids[key] == expected_tokens([key], 60, toy, submit.sampling)


def test_the_prompt_budget_is_kept_and_the_oldest_prompt_advances_by_a_block_whatever_it_is() -> None:
    for budget, expected in ((6, [6, 6, 6, 2]), (0, [4, 4, 4, 4, 4])):
        scheduler = make_scheduler(prompt_budget=FixedPromptBudget(budget))
        scheduler.submit("decode", make_submit([1]))
        run_step(scheduler)
        scheduler.submit("prompt", make_submit([2] * 20))
        scheduler.submit("later", make_submit([2] * 20))
        lengths: list[int] = []
        while len(lengths) < len(expected):
            plan = run_step(scheduler)
            assert len(plan.decode_slots) == 1
            lengths.append(len(plan.chunks[0].token_ids))
            assert sum(len(chunk.token_ids) for chunk in plan.chunks) <= max(budget, 4)
        assert lengths == expected


def launched(launched_s: float, num_decode_steps: int = 1) -> LaunchedStep:
    slots = np.zeros(1, np.int64)
    running = Running(1, 16, 16, ())
    plan = StepPlan(
        started=(), decode_slots=slots.astype(np.int32), chunks=(), new_blocks=(), num_decode_steps=num_decode_steps
    )
    return LaunchedStep(plan, decode_rows(running, slots), (), launched_s, False)


@pytest.mark.parametrize(
    ("step_s", "num_in_flight", "num_steps"),
    [(0.0003, 1, 6), (0.0003, 2, 3), (0.0009, 2, 1), (0.01, 1, 1), (0.00001, 2, MAX_DECODE_STEPS)],
)
def test_what_is_in_flight_is_bounded_in_time(step_s: float, num_in_flight: int, num_steps: int) -> None:
    pace = TimedRunAhead(num_in_flight=num_in_flight)
    assert pace.num_decode_steps() == 1
    now_s = 5.0
    pace.note(launched(now_s), now_s + step_s)
    for num_decode_steps in (2, 1, 4):
        begin_s, now_s = now_s + step_s, now_s + step_s * (1 + num_decode_steps)
        pace.note(launched(begin_s - step_s, num_decode_steps), now_s)
        now_s -= step_s
    assert pace.num_decode_steps() == num_steps

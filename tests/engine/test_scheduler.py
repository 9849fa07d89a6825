"""Plans spelled out: who computes what in which step, in which blocks and slots. Blocks hold 4 tokens here."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from penstock.engine.holdings import OFFERED_BLOCKS
from penstock.engine.plan import PositionLogprobs, StepPlan, StepResult
from penstock.engine.scheduler import Scheduler
from penstock.ipc.messages import FinishReason
from tests.engine.plan_reader import PlanReader, RowRead, sampled_everywhere
from tests.engine.toy_engine import make_scheduler, make_submit

_READERS: weakref.WeakKeyDictionary[Scheduler, PlanReader] = weakref.WeakKeyDictionary()
_ROWS: list[tuple[StepPlan, list[RowRead]]] = []


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan()
    assert plan is not None
    _ROWS.append((plan, _READERS.setdefault(scheduler, PlanReader()).read(plan)))
    return plan


def rows_of(plan: StepPlan) -> list[RowRead]:
    return next(rows for other, rows in _ROWS if other is plan)


def result_of(plan: StepPlan, token_id: int = 7, **fields: Any) -> StepResult:
    """Every request that samples gets `token_id`."""
    return StepResult(token_ids=sampled_everywhere(plan, token_id), **fields)


def run_step(scheduler: Scheduler, token_id: int = 7) -> list[tuple[Any, list[int], FinishReason | None]]:
    plan = planned(scheduler)
    outputs = scheduler.update(plan, result_of(plan, token_id))
    scheduler.check_integrity()
    return [(output.key, output.token_ids, output.finish_reason) for output in outputs]


def work(plan: StepPlan) -> list[tuple[int, int, int]]:
    """(slot, computed, new) per request."""
    return [(row.slot, row.num_computed_tokens, row.num_new_tokens) for row in rows_of(plan)]


def test_a_request_starts_with_its_prompt_and_goes_on_token_by_token() -> None:
    scheduler = make_scheduler()
    scheduler.submit("a", make_submit([1, 2, 3, 4, 5], 3))
    plan = planned(scheduler)
    assert [(started.slot, list(started.prompt_token_ids), list(started.output_token_ids)) for started in plan.started] == [
        (0, [1, 2, 3, 4, 5], [])
    ]
    (request,) = rows_of(plan)
    assert work(plan) == [(0, 0, 5)]
    assert (request.token_ids, request.new_block_ids, request.samples_position) == ([1, 2, 3, 4, 5], ((0, 1),), 0)
    (output,) = scheduler.update(plan, result_of(plan, 7))
    assert (output.position, output.token_ids, output.finish_reason, output.num_cached_tokens) == (0, [7], None, 0)
    plan = planned(scheduler)
    assert plan.started == ()
    (request,) = rows_of(plan)
    assert work(plan) == [(0, 5, 1)]
    assert (request.token_ids, request.new_block_ids, request.samples_position) == (None, ((),), 1)
    (output,) = scheduler.update(plan, result_of(plan, 8))
    assert (output.position, output.token_ids, output.num_cached_tokens) == (1, [8], None)
    assert run_step(scheduler, 9) == [("a", [9], FinishReason.LENGTH)]
    assert not scheduler.has_work
    assert scheduler.plan() is None


def test_a_long_prompt_is_computed_in_chunks_next_to_decodes_which_come_first() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=6)
    scheduler.submit("a", make_submit([1, 2]))
    run_step(scheduler)
    scheduler.submit("b", make_submit([5] * 12))
    scheduler.submit("c", make_submit([6] * 3))
    assert work(planned(scheduler)) == [(0, 2, 1), (1, 0, 5)]
    plan = planned(scheduler)
    assert work(plan) == [(0, 3, 1), (1, 5, 5)]
    assert rows_of(plan)[1].samples_position is None
    plan = planned(scheduler)
    assert work(plan) == [(0, 4, 1), (1, 10, 2), (2, 0, 3)]
    assert [request.samples_position for request in rows_of(plan)] == [3, 0, 0]


def test_a_token_still_on_the_device_is_none_in_the_plan() -> None:
    scheduler = make_scheduler()
    scheduler.submit("a", make_submit([1, 2], 3))
    first = planned(scheduler)
    second = planned(scheduler)
    assert rows_of(second)[0].token_ids is None
    assert rows_of(second)[0].samples_position == 1
    assert next(iter(scheduler.update(first, result_of(first, 7)))).token_ids == [7]
    third = planned(scheduler)
    assert rows_of(third)[0].token_ids is None
    assert scheduler.plan() is None, "max_tokens is known beforehand: nothing is wasted"
    assert next(iter(scheduler.update(second, result_of(second, 8)))).finish_reason is None
    assert next(iter(scheduler.update(third, result_of(third, 9)))).finish_reason is FinishReason.LENGTH


def test_a_stop_found_late_wastes_one_token_that_nobody_sees() -> None:
    scheduler = make_scheduler(eos_token_ids=[3])
    scheduler.submit("a", make_submit([1, 2]))
    first, second = planned(scheduler), planned(scheduler)
    (output,) = scheduler.update(first, result_of(first, 3))
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([3], FinishReason.STOP, 3)
    scheduler.submit("b", make_submit([4, 5]))
    third = planned(scheduler)
    assert work(third) == [(0, 0, 2)], "slot and blocks are free before the wasted step is through"
    assert list(scheduler.update(second, result_of(second, 99))) == []
    (output,) = scheduler.update(third, result_of(third, 6))
    assert (output.key, output.token_ids) == ("b", [6])


def test_the_newest_request_is_preempted_and_the_oldest_advances() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.submit("old", make_submit([1] * 7, 9))
    scheduler.submit("new", make_submit([2] * 7, 9))
    assert run_step(scheduler) == [("old", [7], None), ("new", [7], None)]
    run_step(scheduler)  # both fill their second block
    plan = planned(scheduler)
    assert work(plan) == [(0, 8, 1)]
    assert rows_of(plan)[0].new_block_ids == ((3,),)
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    assert scheduler.metrics.num_preemptions == 1
    scheduler.update(plan, result_of(plan))
    while scheduler.num_running and run_step(scheduler)[0][2] is None:
        assert scheduler.num_waiting == 1
    plan = planned(scheduler)
    (started,) = plan.started
    assert (list(started.prompt_token_ids), list(started.output_token_ids)) == ([2] * 7, [7, 7])
    assert rows_of(plan)[0].samples_position == 2


def test_a_preempted_request_waits_for_its_pending_token() -> None:
    scheduler = make_scheduler(num_blocks=4, caches_prefixes=False)
    scheduler.submit("old", make_submit([1] * 7, 2))
    scheduler.submit("new", make_submit([2] * 8, 9))
    first = planned(scheduler)
    second = planned(scheduler)
    assert work(first) == [(0, 0, 7), (1, 0, 8)]
    assert work(second) == [(0, 7, 1)], "the newest found no block for its next token"
    assert scheduler.plan() is None, "what it sampled is not known yet"
    scheduler.update(first, result_of(first, 5))
    scheduler.update(second, result_of(second, 6))
    plan = planned(scheduler)
    assert rows_of(plan)[0].token_ids == [*[2] * 8, 5]
    assert rows_of(plan)[0].samples_position == 1


def test_a_pending_token_is_waited_for_even_when_there_is_room() -> None:
    scheduler = make_scheduler(num_blocks=4, caches_prefixes=False)
    scheduler.submit("old", make_submit([1] * 7, 9))
    scheduler.submit("new", make_submit([2] * 8, 9))
    first, second = planned(scheduler), planned(scheduler)
    scheduler.abort("old")
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 1)
    assert scheduler.plan() is None
    scheduler.update(first, result_of(first, 5))
    scheduler.update(second, result_of(second, 6))
    assert rows_of(planned(scheduler))[0].token_ids == [*[2] * 8, 5]


def test_who_is_preempted_leaves_the_step_it_was_planned_for() -> None:
    scheduler = make_scheduler(num_blocks=5, max_num_batched_tokens=6)
    scheduler.submit("decode", make_submit([1] * 3))
    run_step(scheduler)
    scheduler.submit("prompt", make_submit([2] * 14, 2, priority=-1))
    assert work(planned(scheduler)) == [(0, 3, 1), (1, 0, 5)]
    assert work(planned(scheduler)) == [(0, 4, 1), (1, 5, 5)]
    assert work(planned(scheduler)) == [(1, 10, 4)], "the prompt comes first in line, and needs the decode's block"
    scheduler.check_integrity()


def test_a_request_that_is_preempted_while_it_stops_ends_once() -> None:
    scheduler = make_scheduler(num_blocks=4, eos_token_ids=[5])
    scheduler.submit("old", make_submit([1] * 7, 2))
    scheduler.submit("new", make_submit([2] * 8, 9))
    first, second = planned(scheduler), planned(scheduler)
    assert [output.finish_reason for output in scheduler.update(first, result_of(first, 5))] == [FinishReason.STOP] * 2
    assert list(scheduler.update(second, result_of(second, 6))) == []
    assert not scheduler.has_work
    scheduler.check_integrity()


def test_priority_goes_before_arrival() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.submit("later", make_submit([1], 1, priority=5))
    scheduler.submit("sooner", make_submit([2], 1, priority=-1))
    scheduler.submit("also sooner", make_submit([3], 1, priority=-1))
    order = [run_step(scheduler)[0][0] for _ in range(3)]
    assert order == ["sooner", "also sooner", "later"]


def test_no_more_than_max_num_seqs_run() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for key in "abc":
        scheduler.submit(key, make_submit([1], 2))
    assert planned(scheduler).num_rows == 2
    assert scheduler.num_waiting == 1


def test_a_conversation_finds_its_past_and_computes_the_rest() -> None:
    scheduler = make_scheduler()
    scheduler.submit("a", make_submit([1, 2, 3, 4, 5, 6], 3))
    while scheduler.has_work:
        run_step(scheduler)
    scheduler.submit("b", make_submit([1, 2, 3, 4, 5, 6, 7, 7, 9], 1))
    plan = planned(scheduler)
    assert work(plan) == [(0, 8, 1)]
    assert rows_of(plan)[0].new_block_ids == ((0, 1, 2),)
    assert rows_of(plan)[0].token_ids == [9]
    (output,) = scheduler.update(plan, result_of(plan))
    assert output.num_cached_tokens == 8
    assert (scheduler.metrics.num_prefix_queries, scheduler.metrics.num_prefix_hits) == (15, 8)


def test_a_long_answer_is_found_while_it_goes_on() -> None:
    scheduler = make_scheduler()
    scheduler.submit("a", make_submit([1, 2, 3], 100))
    for _ in range(OFFERED_BLOCKS * 4 + 3):
        run_step(scheduler)
    scheduler.submit("b", make_submit([1, 2, 3, *[7] * 100], 1))
    assert work(planned(scheduler))[-1] == (1, OFFERED_BLOCKS * 4, 103 - OFFERED_BLOCKS * 4)


def test_a_prompt_that_is_cached_whole_still_computes_a_token() -> None:
    scheduler = make_scheduler()
    for key in "ab":
        scheduler.submit(key, make_submit([1, 2, 3, 4, 5, 6, 7, 8], 1))
        plan = planned(scheduler)
        scheduler.update(plan, result_of(plan))
    assert work(plan) == [(0, 4, 4)]


def test_another_salt_finds_nothing() -> None:
    scheduler = make_scheduler()
    for key, salt in (("a", ""), ("b", "tenant")):
        scheduler.submit(key, make_submit([1] * 8, 1, cache_salt=salt))
        plan = planned(scheduler)
        scheduler.update(plan, result_of(plan))
        assert work(plan) == [(0, 0, 8)]


def test_blocks_are_found_only_once_their_step_has_completed() -> None:
    scheduler = make_scheduler()
    scheduler.submit("a", make_submit([1] * 9))
    first = planned(scheduler)
    scheduler.submit("b", make_submit([1] * 9))
    assert work(planned(scheduler)) == [(0, 9, 1), (1, 0, 9)]
    scheduler.update(first, result_of(first))
    scheduler.submit("c", make_submit([1] * 9))
    assert work(planned(scheduler))[-1] == (2, 8, 1)


@pytest.mark.parametrize("num_steps_before", [0, 1, 3])
def test_an_abort_ends_a_request_wherever_it_is(num_steps_before: int) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    scheduler.submit("a", make_submit([1] * 6))
    for _ in range(num_steps_before):
        run_step(scheduler)
    in_flight = planned(scheduler)
    scheduler.abort("a")
    scheduler.abort("a")
    scheduler.abort("unknown")
    (output,) = scheduler.update(in_flight, result_of(in_flight, 99))
    assert (output.key, output.token_ids, output.finish_reason) == ("a", [], FinishReason.ABORT)
    assert output.position == max(0, num_steps_before - 1)
    assert not scheduler.has_work
    scheduler.check_integrity()


def test_a_key_may_come_back_after_its_abort_and_gets_only_its_own_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.submit("a", make_submit([1, 2]))
    first = planned(scheduler)
    scheduler.abort("a")
    scheduler.submit("a", make_submit([3, 4]))
    second = planned(scheduler)
    outputs = scheduler.update(first, result_of(first, 50))
    assert [(output.token_ids, output.finish_reason) for output in outputs] == [([], FinishReason.ABORT)]
    assert [output.token_ids for output in scheduler.update(second, result_of(second, 60))] == [[60]]


def test_stop_ids_end_a_request_unless_it_is_too_early_or_they_are_ignored() -> None:
    scheduler = make_scheduler(eos_token_ids=[3])
    scheduler.submit("eos", make_submit([1]))
    scheduler.submit("stop id", make_submit([1], stop_token_ids=(3,), ignore_eos=True))
    scheduler.submit("ignores", make_submit([1], ignore_eos=True))
    scheduler.submit("too early", make_submit([1], min_tokens=1))
    ended = [key for key, _, reason in run_step(scheduler, 3) if reason is FinishReason.STOP]
    assert ended == ["eos", "stop id"]
    ended = [key for key, _, reason in run_step(scheduler, 3) if reason is FinishReason.STOP]
    assert ended == ["too early"]


def test_the_contexts_end_is_a_length() -> None:
    scheduler = make_scheduler(max_model_len=5)
    scheduler.submit("a", make_submit([1, 2, 3], 100))
    assert run_step(scheduler) == [("a", [7], None)]
    assert run_step(scheduler) == [("a", [7], FinishReason.LENGTH)]


def test_a_prompt_can_be_scored_without_sampling() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=2)
    scheduler.submit("a", make_submit([1, 2, 3], 0))
    assert run_step(scheduler) == []
    plan = planned(scheduler)
    assert rows_of(plan)[0].samples_position is None
    (output,) = scheduler.update(plan, result_of(plan))
    assert (output.token_ids, output.finish_reason, output.num_cached_tokens) == ([], FinishReason.LENGTH, 0)


def logprobs_of(*token_ids: int) -> PositionLogprobs:
    return PositionLogprobs(token_ids=[[i] for i in token_ids], logprobs=[[-0.5]] * len(token_ids), ranks=[1] * len(token_ids))


def test_prompt_logprobs_add_up_over_chunks_and_come_with_the_first_output() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    scheduler.submit("warm", make_submit([1, 2, 3, 4, 5, 6], 1))
    while scheduler.has_work:
        run_step(scheduler)
    scheduler.submit("a", make_submit([1, 2, 3, 4, 5, 6], 2, prompt_logprobs=0, logprobs=0))
    first = planned(scheduler)
    assert work(first) == [(0, 0, 4)], "a cached prefix has no logits"
    assert list(scheduler.update(first, result_of(first, prompt_logprobs={0: logprobs_of(2, 3, 4, 5)}))) == []
    second = planned(scheduler)
    result = result_of(second, prompt_logprobs={0: logprobs_of(6)}, logprobs={0: logprobs_of(7)})
    (output,) = scheduler.update(second, result)
    assert output.prompt_logprobs == logprobs_of(2, 3, 4, 5, 6)
    assert output.logprobs == logprobs_of(7)
    third = planned(scheduler)
    (output,) = scheduler.update(third, result_of(third))
    assert output.prompt_logprobs is None


def test_prompt_logprobs_of_a_preempted_chunk_are_not_counted_twice() -> None:
    scheduler = make_scheduler(num_blocks=4, max_num_batched_tokens=5, caches_prefixes=False)
    scheduler.submit("old", make_submit([1] * 3, 3))
    scheduler.submit("new", make_submit([2] * 12, 1, prompt_logprobs=0))
    first, second = planned(scheduler), planned(scheduler)
    scheduler.update(first, result_of(first, prompt_logprobs={1: logprobs_of(2, 2)}))
    third = planned(scheduler)
    assert [work(plan) for plan in (first, second, third)] == [[(0, 0, 3), (1, 0, 2)], [(0, 3, 1), (1, 2, 4)], [(0, 4, 1)]]
    scheduler.update(second, result_of(second, prompt_logprobs={1: logprobs_of(2, 2, 2, 2)}))
    scheduler.update(third, result_of(third))
    rows = []
    for num_rows in (5, 5, 1):
        plan = planned(scheduler)
        outputs = scheduler.update(plan, result_of(plan, prompt_logprobs={0: logprobs_of(*[2] * num_rows)}))
        rows += [output.prompt_logprobs for output in outputs]
    assert rows == [logprobs_of(*[2] * 11)]


def test_a_prompt_of_one_token_has_prompt_logprobs_of_no_position() -> None:
    scheduler = make_scheduler()
    scheduler.submit("a", make_submit([1], 1, prompt_logprobs=2))
    plan = planned(scheduler)
    (output,) = scheduler.update(plan, result_of(plan))
    assert output.prompt_logprobs == logprobs_of()


def test_an_error_of_one_request_leaves_the_others_alone() -> None:
    scheduler = make_scheduler()
    for key in "ab":
        scheduler.submit(key, make_submit([1, 2]))
    plan = planned(scheduler)
    bad, good = scheduler.update(plan, result_of(plan, errors={0: "NaN in the logits"}))
    assert (bad.key, bad.token_ids, bad.finish_reason, bad.error) == ("a", [], FinishReason.ERROR, "NaN in the logits")
    assert (good.key, good.token_ids, good.error) == ("b", [7], None)
    scheduler.check_integrity()


def test_a_failed_step_costs_its_newest_request_and_the_others_begin_anew() -> None:
    scheduler = make_scheduler(caches_prefixes=False)
    for key in "abc":
        scheduler.submit(key, make_submit([1, 2]))
    run_step(scheduler, 7)
    planned(scheduler)
    planned(scheduler)
    (output,) = scheduler.fail_in_flight(1, "out of memory")
    assert (output.key, output.finish_reason, output.error) == ("c", FinishReason.ERROR, "out of memory")
    plan = planned(scheduler)
    assert [request.token_ids for request in rows_of(plan)] == [[1, 2, 7], [1, 2, 7]]
    assert [request.samples_position for request in rows_of(plan)] == [1, 1]
    scheduler.check_integrity()


def test_what_a_failed_request_computed_is_not_found_in_the_prefix_cache() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.submit("a", make_submit([1] * 12, 4))
    run_step(scheduler)
    plan = planned(scheduler)
    scheduler.update(plan, result_of(plan, errors={0: "NaN"}))
    assert scheduler.blocks.pool.num_cached == 0
    scheduler.submit("same prompt", make_submit([1] * 12, 4))
    assert work(planned(scheduler)) == [(0, 0, 8)]
    scheduler.check_integrity()


def test_a_resumed_request_goes_on_where_it_stopped() -> None:
    scheduler = make_scheduler()
    scheduler.submit("a", make_submit([1, 2], 4, output=[7, 8]))
    plan = planned(scheduler)
    assert (list(plan.started[0].prompt_token_ids), list(plan.started[0].output_token_ids)) == ([1, 2], [7, 8])
    assert rows_of(plan)[0].samples_position == 2
    (output,) = scheduler.update(plan, result_of(plan, 9))
    assert output.position == 2
    assert run_step(scheduler, 9) == [("a", [9], FinishReason.LENGTH)]


@pytest.mark.parametrize(("output", "reason"), [([7, 8], FinishReason.LENGTH), ([3], FinishReason.STOP)])
def test_a_resumed_request_that_was_done_ends_at_once(output: list[int], reason: FinishReason) -> None:
    scheduler = make_scheduler(eos_token_ids=[3])
    scheduler.submit("a", make_submit([1, 2], 2, output=output))
    assert scheduler.plan() is None
    assert scheduler.has_work
    assert [(ended.finish_reason, ended.position) for ended in scheduler.take_ended()] == [(reason, len(output))]
    assert not scheduler.has_work

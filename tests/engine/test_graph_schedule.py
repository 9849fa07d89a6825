"""When which sizes are captured, on a clock that the tests turn; and which sizes there are."""

from __future__ import annotations

import pytest

from penstock.engine.graph_schedule import CAPTURE_SHARE, REST_BEFORE_CAPTURE_S, WANTED_BEFORE_CAPTURE, GraphSchedule
from penstock.engine.step_sizes import StepSize, StepSizes

SIZES = StepSizes(256, 2048)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def decode(num_rows: int) -> StepSize:
    return SIZES.padded(num_rows, num_rows, is_decode=True)


def mixed(num_tokens: int, num_rows: int) -> StepSize:
    return SIZES.padded(num_tokens, num_rows, is_decode=False)


def want(schedule: GraphSchedule, size: StepSize, times: int = WANTED_BEFORE_CAPTURE) -> StepSize:
    return [schedule.pick(size) for _ in range(times)][-1]


@pytest.mark.parametrize(("max_rows", "max_tokens"), [(1, 1), (6, 512), (256, 2048), (256, 8192), (1000, 1000), (1024, 64)])
def test_every_step_has_a_size_that_holds_it(max_rows: int, max_tokens: int) -> None:
    sizes = StepSizes(max_rows, max_tokens)
    for num_rows in range(1, max_rows + 1):
        size = sizes.padded(num_rows, num_rows, is_decode=True)
        assert size.num_tokens == size.num_rows <= sizes.max_rows
        assert num_rows <= size.num_rows <= max(2 * num_rows, num_rows + 64)
    for num_tokens in range(1, max_tokens + 1):
        size = sizes.padded(num_tokens, min(num_tokens, max_rows), is_decode=False)
        assert num_tokens <= size.num_tokens <= min(sizes.max_tokens, max(64, 2 * num_tokens))
        assert min(num_tokens, max_rows) <= size.num_rows <= max_rows
    assert len(sizes.decodes) < 60


def test_a_size_is_captured_after_it_was_wanted_a_few_times() -> None:
    schedule = GraphSchedule(SIZES, Clock())
    for _ in range(WANTED_BEFORE_CAPTURE):
        assert schedule.due() is None
        assert schedule.pick(decode(3)) == decode(3)
    assert schedule.due() == decode(3)
    schedule.note_captured(decode(3), 0.05)
    assert schedule.due() is None


def test_captures_keep_their_distance_while_there_is_work() -> None:
    clock = Clock()
    schedule = GraphSchedule(SIZES, clock)
    want(schedule, decode(200))
    want(schedule, decode(100), 9)
    assert schedule.due() == decode(100)
    schedule.note_captured(decode(100), 0.05)
    clock.now_s += 0.05 / CAPTURE_SHARE - 0.01
    assert schedule.due() is None
    clock.now_s += 0.02
    assert schedule.due() == decode(200)


def test_a_step_runs_in_a_larger_graph_unless_it_is_much_larger() -> None:
    schedule = GraphSchedule(SIZES, Clock())
    for size in (decode(32), decode(256), mixed(512, 64), mixed(2048, 256)):
        schedule.note_captured(size, 0.0)
    assert schedule.pick(decode(1)) == decode(32)
    assert schedule.pick(decode(32)) == decode(32)
    assert schedule.pick(decode(48)) == decode(48)
    assert schedule.pick(decode(64)) == decode(256)
    assert schedule.pick(mixed(300, 10)) == mixed(512, 64)
    assert schedule.pick(mixed(300, 100)) == mixed(300, 100)
    assert schedule.pick(mixed(190, 10)) == mixed(190, 10)
    assert schedule.pick(mixed(64, 1)) == mixed(64, 1)


def test_an_idle_engine_captures_what_was_wanted_then_everything_large_ones_first() -> None:
    schedule = GraphSchedule(SIZES, Clock())
    want(schedule, mixed(64, 2), 1)
    order = []
    while (size := schedule.missing()) is not None:
        order.append(size)
        schedule.note_captured(size, 0.05)
    assert order[:3] == [mixed(64, 2), decode(256), decode(240)]
    assert sorted(order) == sorted({*SIZES.decodes, *SIZES.mixed})


def test_an_engine_is_idle_some_time_after_its_last_step() -> None:
    clock = Clock()
    schedule = GraphSchedule(SIZES, clock)
    is_resting = [schedule.is_resting]
    schedule.pick(decode(1))
    for _ in range(2):
        is_resting.append(schedule.is_resting)
        clock.now_s += REST_BEFORE_CAPTURE_S
    assert is_resting == [True, False, True]


def test_what_cannot_be_captured_is_not_tried_again() -> None:
    schedule = GraphSchedule(SIZES, Clock())
    want(schedule, decode(4))
    schedule.give_up(decode(4), 0.0)
    assert want(schedule, decode(4)) == decode(4)
    assert schedule.due() is None
    schedule.is_closed = True
    assert want(schedule, decode(8)) == decode(8)
    assert schedule.due() is None
    assert schedule.missing() is None


def test_a_step_too_large_for_graphs_asks_for_none() -> None:
    schedule = GraphSchedule(StepSizes(256, 8192), Clock())
    large = StepSizes(256, 8192).padded(5000, 3, is_decode=False)
    assert large.num_tokens == 5120
    assert want(schedule, large) == large
    assert schedule.due() is None

"""Garbage is collected when nobody waits."""

from __future__ import annotations

import gc
import weakref

from penstock.engine.collector import MAX_BUSY_S, Collector


class Cycle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def leave_garbage() -> weakref.ref[Cycle]:
    return weakref.ref(Cycle())


def test_nothing_is_collected_by_itself_and_all_of_it_when_idle() -> None:
    collector = Collector(0.0)
    was_enabled = gc.isenabled()
    with collector.in_charge():
        assert not gc.isenabled()
        garbage = leave_garbage()
        collector.on_step(1.0)
        assert garbage() is not None
        collector.on_idle(2.0)
        assert garbage() is None
    assert gc.isenabled() == was_enabled


def test_an_engine_that_is_never_idle_collects_what_is_new_now_and_then() -> None:
    collector = Collector(0.0)
    with collector.in_charge():
        garbage = leave_garbage()
        collector.on_step(MAX_BUSY_S)
        assert garbage() is not None
        collector.on_step(MAX_BUSY_S + 1)
        assert garbage() is None

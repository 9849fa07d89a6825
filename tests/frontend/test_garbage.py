from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from penstock.frontend.garbage import THRESHOLDS, calm_collector


@pytest.fixture(autouse=True)
def usual_collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


class Ring:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_not_looked_at_again_and_what_comes_later_is_collected() -> None:
    garbage = weakref.ref(Ring())
    lasting = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    calm_collector()
    assert garbage() is None
    assert gc.get_freeze_count() > len(lasting)
    assert gc.get_threshold() == THRESHOLDS
    later = weakref.ref(Ring())
    gc.collect()
    assert later() is None

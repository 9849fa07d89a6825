"""The one list that all client processes take from: numbers in an unnamed file whose read position they share.

Processes that inherit an open file share its position, and a read moves it in one step: whoever reads next gets the next
number, so no client waits for another and no parent stands in between.
"""

from __future__ import annotations

import os
import random
import tempfile
from typing import IO

from .settings import Work

_NUMBER_BYTES = 4


def make_list(count: int) -> IO[bytes]:
    """An open file with the numbers 0 .. count - 1; its descriptor is for children to inherit."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    file.write(b"".join(index.to_bytes(_NUMBER_BYTES, "little") for index in range(count)))
    file.seek(0)
    return file


def take(descriptor: int) -> int | None:
    """The next number, or None when all are taken."""
    number = os.read(descriptor, _NUMBER_BYTES)
    return int.from_bytes(number, "little") if number else None


def arrival_times_s(count: int, rate: float, seed: int) -> list[float]:
    """When each request of a Poisson process of `rate` per second arrives, in seconds from its beginning."""
    numbers = random.Random(f"arrivals-{seed}")
    now_s, times = 0.0, []
    for _ in range(count):
        now_s += numbers.expovariate(rate)
        times.append(now_s)
    return times


def think_time_s(work: Work, index: int, turn: int) -> float:
    """The pause of a conversation before a turn, exponentially distributed; 0 where there is none."""
    if not work.think_time_s:
        return 0.0
    return random.Random(f"think-{work.seed}{work.variant}-{index}-{turn}").expovariate(1 / work.think_time_s)

"""Which CUDA graphs to capture, when, and which to run a step in. Knows sizes and a clock, nothing of a GPU.

A size is captured after steps have wanted it a few times; until then they run in the next larger graph, if it is not much
larger, or kernel by kernel. While there is work, capturing takes at most CAPTURE_SHARE of the time; an idle engine captures
what is missing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from .step_sizes import StepSize, StepSizes

CAPTURE_SHARE = 0.1
"""Of the time while there is work: after a capture that took t seconds the next one waits for t / CAPTURE_SHARE."""
WANTED_BEFORE_CAPTURE = 3
"""Steps that must have asked for a size while there is work."""
REST_BEFORE_CAPTURE_S = 0.1
"""Without a step, before an engine counts as idle: the next request of a client that waits for each answer comes sooner."""
DECODE_SLACK = 4
"""A decode step may run in a graph for so many times its rows: it takes hardly longer than one of its own..."""
ALWAYS_SLACK_ROWS = 32
"""...and up to so many rows whatever its own."""
MIXED_SLACK = 2
"""A mixed step may run in a graph for so many times its tokens."""


class GraphSchedule:
    """What is captured, wanted and given up."""

    def __init__(self, sizes: StepSizes, clock: Callable[[], float] = time.monotonic) -> None:
        self._decodes = sizes.decodes
        self._mixed = sizes.mixed
        self._is_worth_it = frozenset((*self._decodes, *self._mixed))
        self._clock = clock
        self._captured: set[StepSize] = set()
        self._given_up: set[StepSize] = set()
        self._wanted: Counter[StepSize] = Counter()
        self._next_capture_s = -float("inf")
        self._last_step_s = -float("inf")
        self.is_closed = False
        """Nothing more is captured."""

    def pick(self, wanted: StepSize) -> StepSize:
        """The size to run a step at: that of a captured graph, or `wanted` itself."""
        self._last_step_s = self._clock()
        if wanted in self._captured:
            return wanted
        if self._may_capture(wanted):
            self._wanted[wanted] += 1
        fitting = (size for size in self._captured if _fits(wanted, size))
        return min(fitting, key=lambda size: (size.has_shared != wanted.has_shared, size), default=wanted)

    def due(self) -> StepSize | None:
        """What to capture between two steps, if anything."""
        if self._wanted and not self.is_closed and self._clock() >= self._next_capture_s:
            size, times_wanted = self._wanted.most_common(1)[0]
            if times_wanted >= WANTED_BEFORE_CAPTURE:
                return size
        return None

    @property
    def is_resting(self) -> bool:
        """Whether the last step is long enough ago."""
        return self._clock() >= self._last_step_s + REST_BEFORE_CAPTURE_S

    def missing(self) -> StepSize | None:
        """What to capture while there is nothing else to do: what was wanted, then large ones first, whose memory the
        smaller ones use again."""
        if self._wanted and not self.is_closed:
            return self._wanted.most_common(1)[0][0]
        return next((size for size in (*self._decodes[::-1], *self._mixed[::-1]) if self._may_capture(size)), None)

    def at_start(self) -> tuple[StepSize, ...]:
        """What to capture before the engine is ready: with two graphs every decode step of up to ALWAYS_SLACK_ROWS has one."""
        most = max((size for size in self._decodes if size.num_rows <= ALWAYS_SLACK_ROWS), default=self._decodes[0])
        return tuple(dict.fromkeys((self._decodes[0], most)))

    def note_captured(self, size: StepSize, took_s: float) -> None:
        """A graph for the size can be run."""
        self._captured.add(size)
        self._end(size, took_s)

    def give_up(self, size: StepSize, took_s: float) -> None:
        """The size could not be captured; its steps run without a graph."""
        self._given_up.add(size)
        self._end(size, took_s)

    def _end(self, size: StepSize, took_s: float) -> None:
        self._wanted.pop(size, None)
        self._next_capture_s = self._clock() + took_s / CAPTURE_SHARE

    def _may_capture(self, size: StepSize) -> bool:
        is_worth_it = replace(size, has_shared=False) in self._is_worth_it
        return is_worth_it and not self.is_closed and size not in self._captured and size not in self._given_up


def _fits(wanted: StepSize, size: StepSize) -> bool:
    """Whether a graph of `size` can run a step of size `wanted` without much waste; one that shares nothing always can."""
    if size.has_shared and not wanted.has_shared:
        return False
    if size.is_decode != wanted.is_decode or size.num_tokens < wanted.num_tokens or size.num_rows < wanted.num_rows:
        return False
    if wanted.is_decode:
        return size.num_rows <= max(ALWAYS_SLACK_ROWS, DECODE_SLACK * wanted.num_rows)
    return size.num_tokens <= MIXED_SLACK * wanted.num_tokens

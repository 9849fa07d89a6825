"""How much a step takes on: prompt tokens next to the decodes, and decode steps in a row."""

from __future__ import annotations

from typing import Protocol

from .step_draft import LaunchedStep

MAX_DECODE_STEPS = 8
RUN_AHEAD_S = 0.002
"""So much decoding may be in flight: it is what an arrival waits for, and what a late stop wastes."""
_WEIGHT_OF_LATEST = 0.25


class PromptBudget(Protocol):
    """Says how many prompt tokens a step takes."""

    def prompt_tokens(self, num_decodes: int, num_waiting_tokens: int) -> int:
        """Next to `num_decodes` decodes, with so many prompt tokens left to compute, those of the queue included.

        The scheduler keeps to max_num_batched_tokens, and lets the oldest prompt advance by a block, whatever the answer.
        """


class FillSteps:
    """A PromptBudget: as many as the step can take."""

    def prompt_tokens(self, num_decodes: int, num_waiting_tokens: int) -> int:
        """All."""
        return num_waiting_tokens


class RunAhead(Protocol):
    """Says how many decode steps go into one plan while nothing else is to be done."""

    def num_decode_steps(self) -> int:
        """At least 1."""

    def note(self, step: LaunchedStep, now_s: float) -> None:
        """A step's result has been read."""


class OneStep:
    """A RunAhead that never does."""

    def num_decode_steps(self) -> int:
        """1."""
        return 1

    def note(self, step: LaunchedStep, now_s: float) -> None:
        """Of no interest."""


class TimedRunAhead:
    """A RunAhead that keeps all that is in flight within RUN_AHEAD_S, by the time that decode steps have taken."""

    def __init__(self, *, num_in_flight: int) -> None:
        """`num_in_flight` plans are launched before the first is read."""
        self._num_in_flight = num_in_flight
        self._step_s: float | None = None
        self._last_read_s = 0.0

    def num_decode_steps(self) -> int:
        """As many as MAX_DECODE_STEPS; 1 as long as no decode step was measured."""
        if self._step_s is None:
            return 1
        num_steps = RUN_AHEAD_S / self._num_in_flight / max(self._step_s, 1e-9)
        return max(1, min(MAX_DECODE_STEPS, int(num_steps)))

    def note(self, step: LaunchedStep, now_s: float) -> None:
        """Measures a step without prompts: it began when it was launched or the one before it was read."""
        begin_s = max(step.launched_s, self._last_read_s)
        self._last_read_s = now_s
        if step.chunks:
            return
        step_s = (now_s - begin_s) / step.plan.num_decode_steps
        self._step_s = step_s if self._step_s is None else self._step_s + _WEIGHT_OF_LATEST * (step_s - self._step_s)

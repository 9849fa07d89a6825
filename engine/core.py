"""The engine without its sockets: requests in, outputs out, one step at a time.

`receive -> plan -> launch -> reply`: the caller receives and replies, `step` plans and launches. Overlapped, step n + 1 is
planned and launched before the tokens of step n are read, and the caller sends these while step n + 1 runs; the synchronous
twin beside it gives the same tokens. A step that raises costs its newest request; the others are computed anew, and only a
runner that keeps failing stops the engine.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Hashable
from dataclasses import dataclass

from ..ipc.messages import Submit
from .errors import Refused
from .outputs import RequestOutput, StepOutputs
from .plan import PendingStep, Runner, StepPlan, StepResult
from .scheduler import Scheduler

__all__ = ["EngineCore", "Refused", "RequestOutput", "StepOutputs"]

MAX_FAILURE_STREAK = 8
"""The n-th failed step of a streak costs 2 ** (n - 1) requests; one more than this and the runner is taken for broken."""
STEPS_THAT_END_A_STREAK = 16


@dataclass(frozen=True, slots=True)
class _Launched:
    plan: StepPlan
    pending: PendingStep


@dataclass(frozen=True, slots=True)
class _FailedLaunch:
    """Stands for a step that could not be launched; its failure shows when its turn to be read comes."""

    error: Exception

    def wait(self) -> StepResult:
        raise self.error


class EngineCore:
    """A scheduler and a runner."""

    def __init__(self, scheduler: Scheduler, runner: Runner, *, overlap: bool) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._overlap = overlap
        self._in_flight: _Launched | None = None
        self._failure_streak = 0
        self._num_good_steps = 0
        self.num_completed_steps = 0
        """Steps whose results were read; grows as long as the engine advances."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to compute, to wait for or to tell."""
        return self.scheduler.has_work

    def submit(self, key: Hashable, submit: Submit, handle: int = 0) -> None:
        """Takes a request in; raises Refused. No other request may have the same key until this one has ended.

        `handle`, an int64, comes with its tokens where they come as arrays.
        """
        self.scheduler.submit(key, submit, handle)

    def abort(self, key: Hashable) -> None:
        """Ends a request; its output comes with the next step. A key that is unknown or has ended is ignored."""
        self.scheduler.abort(key)

    def on_idle(self) -> bool:
        """To be called while there is no work: prepares a little for what may come; whether more of that is left."""
        return self.runner.on_idle()

    def step(self) -> StepOutputs:
        """Advances the engine by one step; returns what there is to tell. Raises when the runner keeps failing."""
        return self._step_overlapped() if self._overlap else self._step_synchronously()

    def _step_synchronously(self) -> StepOutputs:
        plan = self.scheduler.plan()
        launched = self._launch(plan)
        return self._collect(launched)

    def _step_overlapped(self) -> StepOutputs:
        plan = self.scheduler.plan()
        previous, self._in_flight = self._in_flight, self._launch(plan)
        return self._collect(previous)

    def _launch(self, plan: StepPlan | None) -> _Launched | None:
        if plan is None:
            return None
        try:
            return _Launched(plan, self.runner.launch(plan))
        except Exception as error:
            return _Launched(plan, _FailedLaunch(error))

    def _collect(self, launched: _Launched | None) -> StepOutputs:
        """Waits for a step and returns what it yields, together with what ended without a step."""
        if launched is None:
            return self.scheduler.take_ended()
        try:
            result = launched.pending.wait()
        except Exception as error:
            return self._recover(error)
        self.num_completed_steps += 1
        self._num_good_steps += 1
        if self._num_good_steps >= STEPS_THAT_END_A_STREAK:
            self._failure_streak = 0
        return self.scheduler.update(launched.plan, result)

    def _recover(self, error: Exception) -> StepOutputs:
        """The step raised: what was launched after it read its void state and is void too."""
        if self._in_flight is not None:
            with contextlib.suppress(Exception):
                self._in_flight.pending.wait()
            self._in_flight = None
        self._failure_streak += 1
        self._num_good_steps = 0
        if self._failure_streak > MAX_FAILURE_STREAK:
            raise error
        print(f"A step failed and is repeated without its newest requests: {_describe(error)}", file=sys.stderr, flush=True)
        return self.scheduler.fail_in_flight(2 ** (self._failure_streak - 1), _describe(error))


def _describe(error: Exception) -> str:
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line:.200}"

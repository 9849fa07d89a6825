"""When steps began and ended on the GPU, by its own clock: how long it computes, and how long it waits in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .batch import Batch


@dataclass(frozen=True, slots=True)
class StepTiming:
    """One launch: one step, or several decode steps in a row."""

    start_ms: float
    """Since the first recorded step began."""
    end_ms: float
    num_steps: int
    num_tokens: int
    """Per step, without padding."""
    num_rows: int
    has_graph: bool


@dataclass(frozen=True, slots=True)
class _Recorded:
    start: torch.cuda.Event
    end: torch.cuda.Event
    num_steps: int
    num_tokens: int
    num_rows: int
    has_graph: bool


class StepTimer:
    """Records a pair of events around each launch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorded: list[_Recorded] = []

    def mark(self) -> torch.cuda.Event:
        """An event behind what has been queued so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def note(self, start: torch.cuda.Event, batch: Batch, *, has_graph: bool) -> None:
        """A launch that began at `start` has been queued."""
        self._recorded.append(_Recorded(start, self.mark(), batch.num_steps, batch.num_tokens, batch.num_rows, has_graph))

    def take(self) -> list[StepTiming]:
        """The launches since the last call, in order; waits for the device."""
        torch.cuda.synchronize(self._device)
        recorded, self._recorded = self._recorded, []
        return [
            StepTiming(
                recorded[0].start.elapsed_time(step.start),
                recorded[0].start.elapsed_time(step.end),
                step.num_steps,
                step.num_tokens,
                step.num_rows,
                step.has_graph,
            )
            for step in recorded
        ]

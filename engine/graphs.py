"""CUDA graphs of steps, captured one at a time by whoever calls, within limits of time (graph_schedule) and memory.

A step is one graph up to its logits and a second one behind it that samples, plain or with filters, so that logits can be
edited in between. All graphs share one pool of memory: two are never run at once, and none leaves anything there that is needed
after its step. Where a capture fails, steps of that size run without a graph.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph_schedule import GraphSchedule
from .progress import format_bytes
from .step_program import StepProgram
from .step_sizes import StepSize, StepSizes

GRAPH_MEMORY_BYTES = 3 << 30
"""What all graphs and their pool may take; measured, as what is missing from the device's free memory after each capture. What
the same step takes without a graph, as in the run before its capture, is none of it."""
MIN_FREE_BYTES = 256 << 20
"""So much must be free for a capture to begin."""


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """The graphs of one size."""

    forward: torch.cuda.CUDAGraph
    logits: Tensor
    """Where `forward` leaves the logits: to be used before any other graph runs."""
    sampling: dict[bool, torch.cuda.CUDAGraph]
    """By whether there are filters."""


class StepGraphs:
    """Graphs of a program's steps, by size."""

    def __init__(
        self,
        program: StepProgram,
        sizes: StepSizes,
        device: torch.device,
        *,
        make_empty: Callable[[StepSize], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_empty` turns the step's rows into padding, for a step that changes nothing."""
        self._program, self._device, self._make_empty, self._clock = program, device, make_empty, clock
        self._schedule = GraphSchedule(sizes, clock)
        self._captured: dict[StepSize, CapturedStep] = {}
        self._pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call, unused-ignore]
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]
        self._used_bytes = 0
        self._has_warned = False

    def pick(self, wanted: StepSize) -> StepSize:
        """See GraphSchedule.pick."""
        return self._schedule.pick(wanted)

    def get(self, size: StepSize) -> CapturedStep | None:
        """The graphs of exactly this size."""
        return self._captured.get(size)

    def capture_due(self) -> bool:
        """Captures one that steps have wanted, if time allows; whether it ran anything on the device."""
        size = self._schedule.due()
        return size is not None and self._try_capture(size)

    def capture_missing(self) -> bool:
        """Captures one, unless a step has just been; whether there is more to capture."""
        size = self._schedule.missing()
        if size is not None and self._schedule.is_resting:
            self._try_capture(size)
        return self._schedule.missing() is not None

    def capture_at_start(self) -> None:
        """Captures what first requests need; the rest follows when there is time."""
        for size in self._schedule.at_start():
            self._try_capture(size)

    def _try_capture(self, size: StepSize) -> bool:
        free_bytes = torch.cuda.mem_get_info(self._device)[0]
        if self._used_bytes >= GRAPH_MEMORY_BYTES or free_bytes < MIN_FREE_BYTES:
            self._close(f"{format_bytes(self._used_bytes)} are in use, {format_bytes(free_bytes)} are free")
            return False
        start_s = self._clock()
        try:
            self._make_empty(size)
            self._warm_up(size)
            free_bytes = torch.cuda.mem_get_info(self._device)[0]
            captured = self._capture(size)
        except torch.OutOfMemoryError as error:
            self._schedule.give_up(size, self._clock() - start_s)
            self._close(str(error).partition("\n")[0])
        except Exception as error:
            self._schedule.give_up(size, self._clock() - start_s)
            self._warn(f"A step of {size.num_tokens} tokens cannot be captured and runs without a CUDA graph: {error}")
        else:
            self._captured[size] = captured
            self._schedule.note_captured(size, self._clock() - start_s)
        if size not in self._captured:
            self._program.reset_steps()
        self._used_bytes += max(0, free_bytes - torch.cuda.mem_get_info(self._device)[0])
        return True

    def _warm_up(self, size: StepSize) -> None:
        """Runs the step once: kernels are compiled and loaded, libraries have their workspaces."""
        logits = self._program.logits(self._program.hidden_states(size), size)
        self._program.count_step()
        for has_filters in (False, True):
            self._program.sample(logits, has_filters=has_filters)

    def _capture(self, size: StepSize) -> CapturedStep:
        program = self._program
        held: list[Tensor] = []

        def forward() -> None:
            held.append(program.logits(program.hidden_states(size), size))

        forward_graph = self._capture_work(forward)
        # The logits stay allocated until both ways of sampling are captured; then other graphs may use their memory.
        sampling = {
            has_filters: self._capture_work(lambda has_filters=has_filters: program.sample(held[0], has_filters=has_filters))  # type: ignore[misc]
            for has_filters in (False, True)
        }
        return CapturedStep(forward_graph, _alias(held[0]), sampling)

    def _capture_work(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            # Not torch.cuda.graph: it waits for the device and empties the allocator's cache.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph

    def _close(self, why: str) -> None:
        self._schedule.is_closed = True
        self._warn(f"No more CUDA graphs are captured, other steps run without: {why}")

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            print(text, file=sys.stderr, flush=True)
        self._has_warned = True


class _Memory:
    """Device memory in the form of the CUDA array interface, version 3; owns nothing."""

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": {2: "<i2", 4: "<i4"}[tensor.element_size()],
            "data": (tensor.data_ptr(), False),
            "strides": None,
            "version": 3,
        }


def _alias(tensor: Tensor) -> Tensor:
    """The same memory, without keeping it allocated."""
    alias = torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype)
    if alias.data_ptr() != tensor.data_ptr() or not tensor.is_contiguous():
        raise RuntimeError("the logits cannot be shared without a copy")
    return alias

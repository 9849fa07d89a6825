"""Where the time of steps goes: launches by size with the card's idle time between them, kernels by share, one layer in order.

For `scripts.bench_engine --profile WHAT`: decodes of so many requests, or a part of the benchmark in the middle of its work.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from penstock.bench.lengths import draw
from penstock.engine.model_runner import ModelRunner
from penstock.engine.step_timing import StepTimer, StepTiming

if TYPE_CHECKING:
    from scripts.bench_engine import Bench

TIMED_STEPS = 100
PROFILED_STEPS = 32
SHARE_BEFORE = 0.25
"""Of a part's output tokens that are generated before anything is looked at."""
NAME_WIDTH = 60
NUM_KERNELS = 24
NUM_IN_ORDER = 24


@dataclass(frozen=True)
class Launch:
    """A kernel or copy on the device; microseconds."""

    name: str
    start_us: float
    end_us: float


def profile_work(bench: Bench, what: str, num_requests: int) -> None:
    """Prints the three tables for decodes of `what` requests, or for the part `what` of `num_requests` requests."""
    if what.isdecimal():
        keys = bench.start_decodes(int(what))
    else:
        pairs = draw(what, num_requests, 0)
        metrics = bench.core.scheduler.metrics
        end = metrics.num_generation_tokens + SHARE_BEFORE * sum(num_output for _, num_output in pairs)
        keys = bench.submit(pairs)
        while metrics.num_generation_tokens < end:
            bench.core.step()
    print_steps(_timings(bench))
    launches, num_steps = _launches(bench)
    bench.end(keys)
    print_kernels(launches, num_steps)
    print_order(launches)


def _timings(bench: Bench) -> list[StepTiming]:
    """Of undisturbed steps."""
    runner = bench.core.runner
    assert isinstance(runner, ModelRunner)
    runner.timer = StepTimer(torch.device("cuda"))
    for _ in range(TIMED_STEPS):
        bench.core.step()
    timings = runner.timer.take()
    runner.timer = None
    return timings


def _launches(bench: Bench) -> tuple[list[Launch], int]:
    """What the device did in PROFILED_STEPS steps, in order, and how many steps that were on the device.

    The profiler stretches short kernels and the gaps between them: shares are good, sums are not those of undisturbed steps.
    """
    before = bench.core.num_completed_steps
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_STEPS):
            bench.core.step()
        torch.cuda.synchronize()
    found = [
        Launch(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(found, key=lambda launch: launch.start_us), bench.core.num_completed_steps - before


def print_steps(timings: list[StepTiming]) -> None:
    """Launches of like size together; what the card waits between launches, by its own clock."""
    groups: dict[tuple[bool, int], list[StepTiming]] = defaultdict(list)
    for timing in timings:
        groups[timing.has_graph, 1 << (timing.num_tokens - 1).bit_length()].append(timing)
    print(f"{'graph':<6} {'tokens up to':>12} {'launches':>8} {'tokens':>7} {'rows':>6} {'ms':>8}")
    for (has_graph, limit), own in sorted(groups.items()):
        tokens = statistics.mean(timing.num_tokens for timing in own)
        rows = statistics.mean(timing.num_rows for timing in own)
        ms = statistics.median((timing.end_ms - timing.start_ms) / timing.num_steps for timing in own)
        print(f"{'yes' if has_graph else 'no':<6} {limit:>12} {len(own):>8} {tokens:>7.0f} {rows:>6.0f} {ms:>8.3f}")
    busy_ms = sum(timing.end_ms - timing.start_ms for timing in timings)
    span_ms = timings[-1].end_ms - timings[0].start_ms
    print(f"{len(timings)} launches in {span_ms:.1f} ms; the card idles {1 - busy_ms / span_ms:.1%} between them\n")


def print_kernels(launches: list[Launch], num_steps: int) -> None:
    """One line per kernel, the costliest first; then how long no kernel ran."""
    own: dict[str, list[float]] = defaultdict(list)
    busy_us, last_end_us = 0.0, launches[0].start_us
    for launch in launches:
        own[launch.name].append(launch.end_us - launch.start_us)
        busy_us += max(0.0, launch.end_us - max(launch.start_us, last_end_us))
        last_end_us = max(last_end_us, launch.end_us)
    span_us = last_end_us - launches[0].start_us
    print(f"{'kernel':<{NAME_WIDTH}} {'per step':>8} {'us each':>8} {'us/step':>8} {'share':>6}")
    for name, times_us in sorted(own.items(), key=lambda item: -sum(item[1]))[:NUM_KERNELS]:
        total_us = sum(times_us)
        print(
            f"{name[:NAME_WIDTH]:<{NAME_WIDTH}} {len(times_us) / num_steps:>8.1f} {total_us / len(times_us):>8.2f} "
            f"{total_us / num_steps:>8.1f} {total_us / span_us:>6.1%}"
        )
    print(f"{num_steps} steps, {span_us / num_steps:,.1f} us each; no kernel running {1 - busy_us / span_us:.1%} of the time\n")


def print_order(launches: list[Launch]) -> None:
    """A few launches from the middle, one after the other: where kernels overlap, and where they leave gaps."""
    middle = launches[len(launches) // 2 :][:NUM_IN_ORDER]
    first_us, last_end_us = middle[0].start_us, middle[0].start_us
    print(f"{'in order':<{NAME_WIDTH}} {'start':>8} {'end':>8} {'after the end before':>20}")
    for launch in middle:
        print(
            f"{launch.name[:NAME_WIDTH]:<{NAME_WIDTH}} {launch.start_us - first_us:>8.2f} {launch.end_us - first_us:>8.2f} "
            f"{launch.start_us - last_end_us:>20.2f}"
        )
        last_end_us = launch.end_us

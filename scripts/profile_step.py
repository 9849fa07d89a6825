"""Where the time of a decode step goes: kernels by share, and what the card idles. For `scripts.bench_engine --profile`."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from scripts.bench_engine import Bench

PROFILED_STEPS = 32
NAME_WIDTH = 72

Interval = tuple[float, float]


def profile_decodes(bench: Bench, batch: int) -> None:
    """Prints the kernels of steps of `batch` decoding requests; times in microseconds per step.

    The profiler itself stretches short kernels and the gaps between them: shares are good, sums are not those of an undisturbed
    step.
    """
    keys = bench.start_decodes(batch)
    tokens = bench.core.scheduler.metrics.num_generation_tokens
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_STEPS):
            bench.core.step()
        torch.cuda.synchronize()
    num_steps = (bench.core.scheduler.metrics.num_generation_tokens - tokens) / batch
    bench.end(keys)
    intervals: dict[str, list[Interval]] = defaultdict(list)
    for event in profiler.events() or []:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            intervals[event.name].append((event.time_range.start, event.time_range.end))
    print_kernels(intervals, num_steps)


def print_kernels(intervals: dict[str, list[Interval]], num_steps: float) -> None:
    """One line per kernel, the costliest first; then what the device did nothing in."""
    times = {name: sum(end - start for start, end in own) for name, own in intervals.items()}
    everything = sorted(interval for own in intervals.values() for interval in own)
    busy_us, last_end = 0.0, everything[0][0]
    for start, end in everything:
        busy_us += max(0.0, end - max(start, last_end))
        last_end = max(last_end, end)
    span_us = last_end - everything[0][0]
    print(f"{'kernel':<{NAME_WIDTH}} {'per step':>8} {'us each':>8} {'us/step':>8} {'share':>6}")
    for name, total_us in sorted(times.items(), key=lambda item: -item[1])[:24]:
        count = len(intervals[name])
        print(
            f"{name[:NAME_WIDTH]:<{NAME_WIDTH}} {count / num_steps:>8.1f} {total_us / count:>8.2f} "
            f"{total_us / num_steps:>8.1f} {total_us / span_us:>6.1%}"
        )
    print(
        f"steps {num_steps:.0f}, {span_us / num_steps:,.1f} us each; no kernel running {1 - busy_us / span_us:.1%} of the time"
    )

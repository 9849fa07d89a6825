"""Times of GPU work inside CUDA graphs, and what the card can do at best, for `scripts.bench_kernels`.

Within a graph nothing waits for the host, as in the engine's steps. Calls are given in several copies, each with its own inputs
and outputs, taken in turn: together larger than the cache, so that none finds its inputs there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

Call = Callable[[], object]
NUM_REPLAYS = 9
HEAD_START_CYCLES = 200_000
"""The card spins for so long before what is timed, so that all of it is queued by then."""
CACHE_BYTES = 256 << 20
"""Copies of a call's tensors together take at least this, unless they are tiny: several times what the card's cache holds."""
MIN_COPIES, MAX_COPIES = 3, 64
CEILING_BYTES = 2 << 30
MATMUL_SIZE = 8192
_READ_BLOCK = 8192


def num_copies(footprint_bytes: int) -> int:
    """How many copies of a call that touches so many bytes. The tensors of tiny ones stay in cache, as in an engine's step."""
    return min(max(-(-CACHE_BYTES // footprint_bytes), MIN_COPIES), MAX_COPIES)


def graph_microseconds(calls: Sequence[Call]) -> float:
    """Median over replays of a graph of all the calls, per call."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call, unused-ignore]
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()  # the inputs are there
    with torch.cuda.stream(stream):
        calls[0]()  # compiles
        stream.synchronize()
        graph.capture_begin()
        try:
            outputs = [call() for call in calls]  # kept until the end, so that each call has its own
        finally:
            graph.capture_end()
    times_us: list[float] = []
    for _ in range(NUM_REPLAYS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call, unused-ignore]
        torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call, unused-ignore]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times_us.append(start.elapsed_time(end) * 1e3 / len(calls))
    del outputs
    return statistics.median(times_us[2:])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _read_kernel(x, sums, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i_program = tl.program_id(0).to(tl.int64)
    tl.store(sums + i_program, tl.sum(tl.load(x + i_program * BLOCK + tl.arange(0, BLOCK)), 0))


def measure_ceilings() -> dict[str, float]:
    """Of this card now: "read" and "copy" in bytes per second (copied bytes count twice), "matmul" in operations per second."""
    source = torch.ones(CEILING_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    programs = source.numel() // _READ_BLOCK
    sums = torch.empty(programs, device="cuda")

    def read() -> None:
        _read_kernel[(programs,)](source, sums, BLOCK=_READ_BLOCK, num_warps=8)

    read_us = graph_microseconds([read] * 3)
    copy_us = graph_microseconds([lambda: target.copy_(source)] * 3)
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))

    def multiply() -> Tensor:
        return a @ b

    matmul_us = graph_microseconds([multiply] * 3)
    return {
        "read": CEILING_BYTES / read_us * 1e6,
        "copy": 2 * CEILING_BYTES / copy_us * 1e6,
        "matmul": 2 * MATMUL_SIZE**3 / matmul_us * 1e6,
    }

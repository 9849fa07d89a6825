"""Which constants make decode attention fast on this GPU: checks every variant against the twin, then prints what each reaches.

    PYTHONPATH=. python3 scripts/tune_decode_attention.py [--json FILE]

Kernels are compiled first, by several processes at once. A figure is the median over replays of a CUDA graph of several
launches, each of which reads other blocks, so that the cache does not help; shares are of a plain read of memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from penstock.engine.shared_prefixes import find_shared_chunks
from penstock.kernels import ops, reference_attention, triton_decode_plan
from penstock.kernels.attention_batch import MAX_SHARED_CHUNKS, SHARED_QUERY_ROWS
from penstock.kernels.triton_attend_keys import Tuning
from penstock.kernels.triton_decode_attention import decode_tuning, paged_decode_attention
from penstock.kernels.triton_shared_attention import SHARED_TUNING

BLOCK_SIZE = 16
POOL_BYTES = 2 << 30
"""Of keys, and as many of values."""
MAX_LAUNCHES = 32
NUM_REPLAYS = 7
COMPILER_PROCESSES = 12
MAX_RELATIVE_ERROR = 1e-2
DEFAULT_SPLIT_KIB = triton_decode_plan.SPLIT_BYTES >> 10


@dataclass(frozen=True)
class Variant:
    """What is tried."""

    tuning: Tuning
    split_kib: int

    def __str__(self) -> str:
        t = self.tuning
        return f"{t.tile_bytes >> 10}K w{t.num_warps} s{t.num_stages} x{t.programs_per_multiprocessor} /{self.split_kib}K"


@dataclass(frozen=True)
class Model:
    """What attention sees of one."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


LLAMA_8B, LLAMA_1B, QWEN_06B = Model("8B", 32, 8, 128), Model("1B", 32, 8, 64), Model("0.6B", 16, 8, 128)
MIXED_LENGTHS = [random.Random(5).randrange(50, 2000) for _ in range(120)]
SHAPES = {
    LLAMA_8B: [[1000], [1000] * 16, [1000] * 32, [1000] * 64, [1000] * 128, [1000] * 256, [32000] * 8, MIXED_LENGTHS],
    LLAMA_1B: [[1000], [1000] * 32, [1000] * 128, [1000] * 256],
    QWEN_06B: [[1000], [1000] * 32, [1000] * 256],
}
"""Context lengths of the batches."""
_TUNINGS = {
    128: [Tuning(16384, 4, 3, 3), Tuning(16384, 4, 4, 2), Tuning(8192, 4, 4, 4), Tuning(8192, 2, 4, 4), Tuning(4096, 2, 6, 4)],
    64: [Tuning(8192, 4, 4, 4), Tuning(8192, 4, 4, 3), Tuning(16384, 4, 3, 3), Tuning(8192, 2, 4, 4)],
}
_SPLITS_KIB = [32, 64, 128, 256]
SHARED_TUNINGS = [SHARED_TUNING, Tuning(16384, 8, 3, 1), Tuning(16384, 8, 3, 2), Tuning(16384, 4, 3, 1), Tuning(16384, 4, 2, 2)]


def variants(head_dim: int) -> list[Variant]:
    """The tunings with the middle splits, and the first of them with all."""
    tunings = _TUNINGS[head_dim]
    return [Variant(t, kib) for t in tunings for kib in (_SPLITS_KIB if t == tunings[0] else _SPLITS_KIB[1:3])]


@dataclass(frozen=True)
class Launch:
    """Inputs of one launch."""

    model: Model
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    batch: ops.AttentionBatch

    def run(self, out: Tensor, tuning: Tuning | None, shared_tuning: Tuning = SHARED_TUNING) -> None:
        scale = self.model.head_dim**-0.5
        paged_decode_attention(self.q, self.k_cache, self.v_cache, self.batch, scale, None, out, tuning, shared_tuning)

    def planned(self) -> Launch:
        model = self.model
        plan = triton_decode_plan.plan_attention(self.batch, model.num_heads, model.num_kv_heads, model.head_dim, None)
        return replace(self, batch=plan)


class Pool:
    """Keys and values in random numbers, dealt out block by block in random order."""

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self._keys, self._values = (
            torch.empty(num_bytes // 2, dtype=torch.bfloat16, device=device).normal_() for _ in range(2)
        )

    def caches(self, model: Model) -> tuple[Tensor, Tensor]:
        shape = (-1, model.num_kv_heads, BLOCK_SIZE, model.head_dim)
        return self._keys.view(shape), self._values.view(shape)

    def launches(self, model: Model, context_lens: Sequence[int], shared_tokens: int = 0) -> Iterator[Launch]:
        """As many as there are blocks for, each with blocks of its own. `shared_tokens` are the same for all rows."""
        k_cache, v_cache = self.caches(model)
        device, num_rows = k_cache.device, len(context_lens)
        shared_blocks = shared_tokens // BLOCK_SIZE
        num_columns = [-(-length // BLOCK_SIZE) - shared_blocks for length in context_lens]
        blocks = torch.randperm(len(k_cache)).int()
        blocks_per_launch = sum(num_columns) + shared_blocks
        for launch in range(min(MAX_LAUNCHES, len(blocks) // blocks_per_launch)):
            prefix, *own = blocks[launch * blocks_per_launch :][:blocks_per_launch].split([shared_blocks, *num_columns])
            table = torch.full((num_rows, shared_blocks + max(num_columns)), -1, dtype=torch.int32)
            for row, row_blocks in enumerate(own):
                table[row, : shared_blocks + len(row_blocks)] = torch.cat((prefix, row_blocks))
            batch = ops.AttentionBatch(
                block_table=table.to(device),
                row_slots=torch.arange(num_rows, dtype=torch.int32, device=device),
                query_start=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
                context_lens=torch.tensor(context_lens, dtype=torch.int32, device=device),
                kv_slots=torch.zeros(num_rows, dtype=torch.int64, device=device),
                max_query_len=1,
                max_context_len=max(context_lens),
            )
            q = torch.randn(num_rows, model.num_heads, model.head_dim, device=device).bfloat16()
            yield Launch(model, q, k_cache, v_cache, batch)


def with_shared(launch: Launch) -> Launch:
    """The same with what its rows share laid out."""
    table, lengths = launch.batch.block_table.cpu().numpy(), launch.batch.context_lens.tolist()
    found = find_shared_chunks(
        [row[: (length - 1) // BLOCK_SIZE] for row, length in zip(table, lengths, strict=True)],
        block_size=BLOCK_SIZE,
        members_per_item=SHARED_QUERY_ROWS // (launch.model.num_heads // launch.model.num_kv_heads),
        max_chunks=MAX_SHARED_CHUNKS,
    )
    assert found is not None

    def on_device(array: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Tensor:
        return torch.from_numpy(array).to(launch.q.device)

    shared = ops.SharedChunks(
        members=on_device(found.members),
        items=on_device(found.items),
        shared_lens=on_device(found.shared_lens),
        num_chunks=on_device(found.num_chunks),
    )
    return replace(launch, batch=replace(launch.batch, shared=shared))


def relative_error(launch: Launch, tuning: Tuning | None, shared_tuning: Tuning = SHARED_TUNING) -> float:
    """Of the kernel's output against the twin's."""
    out = torch.full_like(launch.q, torch.nan)
    launch.planned().run(out, tuning, shared_tuning)
    scale = launch.model.head_dim**-0.5
    expected = reference_attention.paged_attention(launch.q, launch.k_cache, launch.v_cache, launch.batch, scale, None)
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def microseconds(work: Sequence[Callable[[], object]]) -> float:
    """Per call of the functions in a graph, median over its replays."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        work[0]()
        stream.synchronize()
        graph.capture_begin()
        for call in work:
            call()
        graph.capture_end()
        times_ms = []
        for _ in range(NUM_REPLAYS + 1):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times_ms.append(start.elapsed_time(end))
    return float(statistics.median(times_ms[1:]) * 1000 / len(work))


def time_launches(launches: Sequence[Launch], tuning: Tuning | None, shared_tuning: Tuning = SHARED_TUNING) -> float:
    """Microseconds per launch."""
    out = torch.empty_like(launches[0].q)
    return microseconds([lambda launch=launch: launch.run(out, tuning, shared_tuning) for launch in launches])  # type: ignore[misc]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _read_kernel(source, sums, num_tiles, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    i_number = tl.arange(0, TILE)
    b_sum = tl.zeros((TILE,), tl.int32)
    for i_tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        b_sum += tl.load(source + i_tile.to(tl.int64) * TILE + i_number)
    tl.store(sums + tl.program_id(0), tl.sum(b_sum))


def read_ceiling(pool: Pool) -> float:
    """Bytes per second of a plain read."""
    source = pool.caches(LLAMA_8B)[0].view(torch.int32).view(-1)
    sums = torch.empty(10000, dtype=torch.int32, device=source.device)
    num_multiprocessors = torch.cuda.get_device_properties(source.device).multi_processor_count

    def read(programs: int, tile: int) -> None:
        grid = (num_multiprocessors * programs,)
        _read_kernel[grid](source, sums, source.numel() // tile, TILE=tile, num_warps=8)

    times_us = [microseconds([lambda p=p, t=t: read(p, t)] * 2) for p in (4, 8) for t in (4096, 8192, 16384)]  # type: ignore[misc]
    return source.numel() * 4 / min(times_us) * 1e6


def set_splits(variant: Variant) -> None:
    triton_decode_plan.SPLIT_BYTES = variant.split_kib << 10


def check_all(pool: Pool) -> None:
    """Every tuning against the twin on a batch of mixed lengths."""
    lengths = [1, 17, 127, 129, 200, 640, 1500, 5000]
    for model in SHAPES:
        launch = next(pool.launches(model, lengths))
        for variant in variants(model.head_dim):
            set_splits(variant)
            error = relative_error(launch, variant.tuning)
            assert error < MAX_RELATIVE_ERROR, f"{model.name} {variant}: off by {error:.1e}"
    set_splits(Variant(SHARED_TUNING, DEFAULT_SPLIT_KIB))
    launch = with_shared(next(pool.launches(LLAMA_8B, [2300 + row for row in range(40)], 2048)))
    for shared_tuning in SHARED_TUNINGS:
        error = relative_error(launch, None, shared_tuning)
        assert error < MAX_RELATIVE_ERROR, f"shared {shared_tuning}: off by {error:.1e}"


def compile_some(which: int) -> None:
    """Runs every COMPILER_PROCESSES-th kernel once, so that it lies in Triton's cache."""
    pool = Pool(torch.device("cuda"), 64 << 20)
    jobs: list[Callable[[], object]] = []
    for model in SHAPES:
        launch = next(pool.launches(model, [100, 900]))
        tunings = dict.fromkeys(variant.tuning for variant in variants(model.head_dim))
        jobs += [lambda launch=launch, t=t: launch.run(torch.empty_like(launch.q), t) for t in tunings]  # type: ignore[misc]
    shared = with_shared(next(pool.launches(LLAMA_8B, [300, 300], 256)))
    jobs += [lambda t=t: shared.run(torch.empty_like(shared.q), None, t) for t in SHARED_TUNINGS]  # type: ignore[misc]
    for model, shapes in SHAPES.items():
        for num_rows in {len(lengths) for lengths in shapes}:
            launch = next(pool.launches(model, [16] * num_rows))
            jobs.append(launch.planned)
    for job in itertools.islice(jobs, which, None, COMPILER_PROCESSES):
        job()


def print_shape(name: str, num_bytes: int, ceiling: float, times_us: dict[str, float], default: str) -> None:
    """The best variants and the default."""
    best = sorted(times_us, key=times_us.__getitem__)[:4]
    print(f"{name}: {num_bytes / 1e6:.0f} MB, at the ceiling {num_bytes / ceiling * 1e6:.1f} us")
    for variant in dict.fromkeys([*best, default]):
        us = times_us[variant]
        mark = "  <- default" if variant == default else ""
        print(f"    {variant:24s} {us:8.1f} us {num_bytes / us / 1e3:7.0f} GB/s {num_bytes / us * 1e6 / ceiling:6.1%}{mark}")


def tune(pool: Pool, ceiling: float, results: list[dict[str, object]]) -> None:
    """Prints and notes every shape's times."""
    totals: dict[tuple[int, str], float] = {}
    for model, shapes in SHAPES.items():
        for lengths in shapes:
            launches = list(pool.launches(model, lengths))
            num_bytes = sum(lengths) * model.num_kv_heads * model.head_dim * 4
            name = f"{model.name} {len(lengths)} x {max(lengths) if len(set(lengths)) == 1 else 'mixed'}"
            times_us = {}
            for variant in variants(model.head_dim):
                set_splits(variant)
                us = time_launches([launch.planned() for launch in launches], variant.tuning)
                times_us[str(variant)] = us
                results.append({"shape": name, "bytes": num_bytes, "us": us} | asdict(variant))
            print_shape(name, num_bytes, ceiling, times_us, str(Variant(decode_tuning(model.head_dim), DEFAULT_SPLIT_KIB)))
            for variant_name, us in times_us.items():
                key = (model.head_dim, variant_name)
                totals[key] = totals.get(key, 0.0) + us / min(times_us.values())
    print("sum over shapes of time / best time:")
    for (head_dim, variant_name), total in sorted(totals.items(), key=lambda entry: entry[1]):
        print(f"    head size {head_dim}: {variant_name:24s} {total:.3f}")


def tune_shared(pool: Pool) -> None:
    """Prints what a common prefix of 2048 tokens costs, read by each row and read once."""
    set_splits(Variant(SHARED_TUNING, DEFAULT_SPLIT_KIB))
    for num_rows in (8, 64, 256):
        lengths = [2048 + 375] * num_rows
        launches = list(itertools.islice(pool.launches(LLAMA_8B, lengths, 2048), 8))
        alone_us = time_launches([launch.planned() for launch in launches], None)
        grouped = [with_shared(launch).planned() for launch in launches]
        times = ", ".join(f"{Variant(t, DEFAULT_SPLIT_KIB)} {time_launches(grouped, None, t):.1f} us" for t in SHARED_TUNINGS)
        print(f"8B, {num_rows} rows of 2048 shared + 375 own: each for itself {alone_us:.1f} us; read once: {times}")


def time_plan(pool: Pool) -> None:
    for num_rows in (1, 256):
        launch = next(pool.launches(LLAMA_8B, [1000] * num_rows))
        print(f"plan of {num_rows} rows: {microseconds([launch.planned] * 10):.1f} us")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="writes every figure there, as JSON lines")
    parser.add_argument("--compile", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile is not None:
        compile_some(args.compile)
        return 0
    start_s = time.perf_counter()
    compilers = [subprocess.Popen([sys.executable, __file__, "--compile", str(which)]) for which in range(COMPILER_PROCESSES)]
    pool = Pool(torch.device("cuda"), POOL_BYTES)
    for compiler in compilers:
        assert compiler.wait() == 0
    print(f"compiled after {time.perf_counter() - start_s:.1f} s")
    check_all(pool)
    print(f"every variant agrees with the twin, after {time.perf_counter() - start_s:.1f} s")
    ceiling = read_ceiling(pool)
    print(f"{torch.cuda.get_device_name()}, plain read {ceiling / 1e12:.2f} TB/s")
    results: list[dict[str, object]] = []
    tune(pool, ceiling, results)
    tune_shared(pool)
    time_plan(pool)
    if args.json is not None:
        args.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    print(f"done after {time.perf_counter() - start_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

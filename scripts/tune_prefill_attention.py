"""Which tiles make prefill attention fast on this GPU: checks every variant against the twin, then prints TFLOP/s.

    PYTHONPATH=. python3 scripts/tune_prefill_attention.py

Kernels are compiled first, by several processes at once. Each figure is the median over replays of a CUDA graph of several
launches; operations are those of the query-key pairs that are seen, 4 * head size for each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from penstock.kernels import ops, reference_attention
from penstock.kernels.prefill_work import KeyTiles
from penstock.kernels.triton_prefill_attention import paged_prefill_attention
from penstock.kernels.triton_prefill_plan import list_tiles

BLOCK_SIZE = 16
LAUNCHES_PER_GRAPH = 4
NUM_REPLAYS = 5
MAX_RELATIVE_ERROR = 1e-2
COMPILER_PROCESSES = 12
VARIANTS = [
    (64, KeyTiles(64, 4, 2)),
    (64, KeyTiles(64, 4, 3)),
    (64, KeyTiles(32, 4, 3)),
    (64, KeyTiles(128, 4, 2)),
    (128, KeyTiles(64, 8, 2)),
    (128, KeyTiles(64, 8, 3)),
    (128, KeyTiles(64, 8, 2, 128)),
    (128, KeyTiles(32, 8, 3, 128)),
    (128, KeyTiles(128, 8, 2)),
]
"""(rows of a tile, tiles of keys)."""
MODELS = [(32, 8, 128), (16, 8, 128), (32, 8, 64)]
"""(query heads, KV heads, head size)."""
CASES = {
    "8k x 1": [(8192, 8192)],
    "2k x 1": [(2048, 2048)],
    "1k x 8": [(1024, 1024)] * 8,
    "218 x 40": [(218, 218)] * 40,
    "64 x 4": [(64, 64)] * 4,
    "512 at 8k": [(512, 8192)],
    "128 at 8k": [(128, 8192)],
}
"""(query length, context length) of each row."""


@dataclass(frozen=True)
class Case:
    batch: ops.AttentionBatch
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    num_operations: int


def make_case(lengths: list[tuple[int, int]], num_heads: int, num_kv_heads: int, head_dim: int) -> Case:
    query_lens = torch.tensor([query_len for query_len, _ in lengths], dtype=torch.int32)
    context_lens = torch.tensor([context_len for _, context_len in lengths], dtype=torch.int32)
    num_tokens = int(query_lens.sum())
    max_blocks = -(-int(context_lens.max()) // BLOCK_SIZE // 16) * 16 + 16
    num_blocks = len(lengths) * max_blocks
    k_cache, v_cache = ops.make_kv_cache(num_blocks, BLOCK_SIZE, num_kv_heads, head_dim, torch.bfloat16, torch.device("cuda"))
    k_cache.normal_()
    v_cache.normal_()
    block_table = torch.randperm(num_blocks, dtype=torch.int32).view(len(lengths), max_blocks)
    query_start = torch.cat((torch.zeros(1, dtype=torch.int32), query_lens.cumsum(0, dtype=torch.int32)))
    batch = ops.AttentionBatch(
        block_table=block_table.cuda(),
        row_slots=torch.arange(len(lengths), dtype=torch.int32, device="cuda"),
        query_start=query_start.cuda(),
        context_lens=context_lens.cuda(),
        kv_slots=torch.zeros(num_tokens, dtype=torch.int64, device="cuda"),
        max_query_len=int(query_lens.max()),
        max_context_len=int(context_lens.max()),
        host_lengths=torch.stack((query_lens, context_lens)),
    )
    q = torch.randn(num_tokens, num_heads, head_dim, dtype=torch.bfloat16, device="cuda")
    pairs = sum(n * context - n * (n - 1) // 2 for n, context in lengths)
    return Case(batch, q, k_cache, v_cache, 4 * head_dim * num_heads * pairs)


def launcher(case: Case, tile_rows: int, key_tiles: KeyTiles, out: Tensor) -> Callable[[], None]:
    group = case.q.shape[1] // case.k_cache.shape[1]
    batch = replace(case.batch, prefill_work=list_tiles(case.batch, group, tile_rows))
    scale = case.q.shape[2] ** -0.5
    return lambda: paged_prefill_attention(case.q, case.k_cache, case.v_cache, batch, scale, None, out, key_tiles)


def median_us(launch: Callable[[], object]) -> float:
    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES_PER_GRAPH):
            launch()
    graph.replay()
    times = []
    for _ in range(NUM_REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) * 1e3 / LAUNCHES_PER_GRAPH)
    return statistics.median(times)


def is_right(model: tuple[int, int, int], tile_rows: int, key_tiles: KeyTiles) -> bool:
    case = make_case([(218, 218), (77, 1030), (5, 5), (500, 900)], *model)
    out = torch.full_like(case.q, torch.nan)
    launcher(case, tile_rows, key_tiles, out)()
    scale = model[2] ** -0.5
    expected = reference_attention.paged_attention(
        case.q.float(), case.k_cache.float(), case.v_cache.float(), case.batch, scale, None
    )
    return bool((out - expected).norm() / expected.norm() < MAX_RELATIVE_ERROR)


def compile_share(share: int) -> None:
    """Compiles every COMPILER_PROCESSES-th kernel by launching it."""
    configurations = [(model, *variant) for model in MODELS for variant in VARIANTS]
    for model, tile_rows, key_tiles in configurations[share::COMPILER_PROCESSES]:
        case = make_case([(64, 64)], *model)
        launcher(case, tile_rows, key_tiles, torch.empty_like(case.q))()
    torch.cuda.synchronize()


def compile_all() -> None:
    start = time.monotonic()
    command = [sys.executable, __file__, "--compile-share"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen([*command, str(share)], env=environment) for share in range(COMPILER_PROCESSES)]
    codes = [child.wait() for child in children]
    assert not any(codes), codes
    print(f"compiled in {time.monotonic() - start:.0f} s")


def torch_tflops(case: Case, lengths: list[tuple[int, int]], backend: SDPBackend) -> float:
    """scaled_dot_product_attention over rows of equal length that start at position 0, keys and values in plain tensors."""
    num_tokens, num_heads, head_dim = case.q.shape
    shapes = [(num_tokens, heads, head_dim) for heads in (num_heads, case.k_cache.shape[1], case.k_cache.shape[1])]
    tensors = [torch.randn(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes]
    q, k, v = (x.view(len(lengths), lengths[0][0], *x.shape[1:]).transpose(1, 2) for x in tensors)
    with sdpa_kernel(backend):
        us = median_us(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    return case.num_operations / us / 1e6


def print_table(model: tuple[int, int, int]) -> None:
    names = list(CASES) if model == MODELS[0] else ["8k x 1", "1k x 8", "218 x 40", "512 at 8k"]
    print(f"\n{model[0]}/{model[1]} heads of {model[2]}, TFLOP/s" + " " * 20 + "".join(f"{name:>11}" for name in names))
    cases = {name: make_case(CASES[name], *model) for name in names}
    for tile_rows, tiles in VARIANTS:
        limit = f" <= {tiles.max_registers} registers" if tiles.max_registers else ""
        label = f"{tile_rows}x{tiles.num_keys} warps {tiles.num_warps} stages {tiles.num_stages}{limit}"
        print(f"{label:<54}", end="", flush=True)
        if not is_right(model, tile_rows, tiles):
            print("WRONG")
            continue
        for case in cases.values():
            us = median_us(launcher(case, tile_rows, tiles, torch.empty_like(case.q)))
            print(f"{case.num_operations / us / 1e6:>11.1f}", end="", flush=True)
        print()
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        figures = []
        for name, case in cases.items():
            try:
                figures.append("-" if "at" in name else f"{torch_tflops(case, CASES[name], backend):.1f}")
            except RuntimeError:
                figures.append("refused")
        print(f"{'torch ' + backend.name.lower():<54}" + "".join(f"{figure:>11}" for figure in figures))


def print_plan_times() -> None:
    for lengths in ([(8192, 8192)], [(1, 900)] * 60 + [(64, 64)] * 4, [(32, 32)] * 256):
        case = make_case(lengths, 8, 8, 64)
        us = median_us(lambda case=case: list_tiles(case.batch, 4, 128))  # type: ignore[misc]
        print(f"listing the tiles of {len(lengths)} rows, {case.q.shape[0]} tokens: {us:.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-share", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.compile_share is not None:
        compile_share(arguments.compile_share)
        return
    start = time.monotonic()
    compile_all()
    for model in MODELS:
        print_table(model)
    print_plan_times()
    print(f"\n{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()

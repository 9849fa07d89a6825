"""What scripts.tune_products tries: the products of three models, and a small grid of constants for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.kernels.product_choices import Config, Kind
from penstock.kernels.triton_gemv import MAX_ROWS as MAX_GEMV_ROWS
from penstock.kernels.triton_gemv import GemvConfig
from penstock.kernels.triton_skinny import SkinnyConfig

ROWS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Shape:
    """A weight [num_outputs, num_inputs] and the ways in which layers multiply by it, each after those it is composed of."""

    num_outputs: int
    num_inputs: int
    kinds: tuple[Kind, ...] = ("linear",)

    @property
    def is_head(self) -> bool:
        """Whether it is an output head, whose time is bandwidth alone."""
        return self.num_outputs > 1 << 16


NORMED: tuple[Kind, ...] = ("linear", "norm")
GATED: tuple[Kind, ...] = ("linear", "gated", "norm_gated")
MODELS: dict[str, list[Shape]] = {
    "8B": [
        Shape(6144, 4096, NORMED),
        Shape(4096, 4096),
        Shape(28672, 4096, GATED),
        Shape(4096, 14336),
        Shape(128256, 4096, NORMED),
    ],
    "1B": [
        Shape(3072, 2048, NORMED),
        Shape(2048, 2048),
        Shape(16384, 2048, GATED),
        Shape(2048, 8192),
        Shape(128256, 2048, NORMED),
    ],
    "0.6B": [
        Shape(4096, 1024, NORMED),
        Shape(1024, 2048),
        Shape(6144, 1024, GATED),
        Shape(1024, 3072),
        Shape(151936, 1024, NORMED),
    ],
}
"""Per layer: q, k and v together; attention's output; gate and up together; down. Last the output head."""
NUM_LAYERS = {"8B": 32, "1B": 16, "0.6B": 28}


def candidates(kind: Kind, num_rows: int, shape: Shape) -> Iterator[Config]:
    """The constants worth trying."""
    tiles = shape.num_outputs // (2 if kind in ("gated", "norm_gated") else 1)
    halves = 2 if kind in ("gated", "norm_gated") else 1
    if num_rows <= MAX_GEMV_ROWS:
        yield from _gemv_candidates(num_rows, tiles, halves, shape)
    if num_rows >= MAX_GEMV_ROWS and kind in ("linear", "gated"):
        yield from _skinny_candidates(num_rows, tiles, halves, shape)


def _gemv_candidates(num_rows: int, tiles: int, halves: int, shape: Shape) -> Iterator[Config]:
    for warps in (2, 4, 8) if num_rows == 1 else (2, 4):
        block_k = 256 * warps
        if block_k > shape.num_inputs or (warps == 2 and shape.num_inputs > 4096) or (warps == 8 and shape.is_head):
            continue
        for block_n in (2, 4, 8, 16):
            sums = block_n * halves * num_rows
            if (
                sums > (16 if num_rows == 1 else 32)
                or tiles // block_n < 132
                or (block_n == 2 and num_rows == 1 and tiles > 4096)
            ):
                continue
            for prefetch in (1, 4) if num_rows == 1 and not shape.is_head else (1,):
                if prefetch == 1 or prefetch * block_k <= shape.num_inputs:
                    yield GemvConfig(block_n, block_k, warps, 1, prefetch)
    if num_rows == 1 and shape.num_inputs >= 4096:
        yield GemvConfig(8 // halves, 1024, 4, 3, 1)


def _skinny_candidates(num_rows: int, tiles: int, halves: int, shape: Shape) -> Iterator[Config]:
    """Tiles of up to 24 KiB a stage, and parts of K that give the device about two to four programs a multiprocessor."""
    blocks = ((32, 128, 4), (64, 128, 4), (128, 64, 4)) if num_rows <= 16 else ((64, 64, 4), (64, 128, 4), (128, 64, 4))
    for block_n, block_k, stages in blocks:
        if halves == 2:
            block_n //= 2
        if block_n < 32:
            continue
        programs = tiles // block_n
        splits = [split for split in (1, 2, 4, 8) if shape.num_inputs // split >= 4 * block_k and programs * split <= 600]
        good = [split for split in splits if programs * split >= 200] or splits[-1:] or [1]
        for split in good[:2]:
            yield SkinnyConfig(block_n, block_k, split, 4, stages)

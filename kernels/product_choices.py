"""Which kernel, with which constants, computes a product of few rows: measured for known shapes, guessed for others.

`product_choices.json`, written by scripts/tune_products.py, holds what was measured on one kind of device; None
stands for torch's own product. Kinds: "linear", "gated" (silu(gate) * up behind it), "norm" and "norm_gated" (behind a norm).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

import torch

from .triton_gemv import MAX_ROWS as MAX_GEMV_ROWS
from .triton_gemv import GemvConfig
from .triton_skinny import SkinnyConfig

Kind = Literal["linear", "gated", "norm", "norm_gated"]
Config = GemvConfig | SkinnyConfig
TABLE = Path(__file__).with_name("product_choices.json")
PROGRAMS_PER_DEVICE = 3 * 132
"""The guess takes the tallest tile that leaves a large device three programs for each multiprocessor."""


def choose(kind: Kind, num_rows: int, num_outputs: int, num_inputs: int, device_index: int) -> Config | None:
    """The kernel for x [num_rows, num_inputs] and a weight [num_outputs, num_inputs] of 16 bits an element.

    num_outputs counts the rows of the weight, gates and ups together.
    """
    capability = torch.cuda.get_device_capability(device_index)
    measured, choices = _table()
    if capability == measured:
        for max_rows, config in choices.get((kind, num_outputs, num_inputs), ()):
            if num_rows <= max_rows:
                return config
    return guess(kind, num_rows, num_outputs, num_inputs)


@functools.cache
def guess(kind: Kind, num_rows: int, num_outputs: int, num_inputs: int) -> Config | None:
    """For shapes that were not measured: our own kernel where it streams long rows for the vector units, else torch's."""
    if num_rows > MAX_GEMV_ROWS or num_inputs < 512 or num_inputs % 8:
        return None
    gated, normed = kind in ("gated", "norm_gated"), kind in ("norm", "norm_gated")
    warps = 2 if num_inputs <= 1024 else 4
    tallest = ({1: 8, 2: 8} if normed else {1: 16, 2: 8}).get(num_rows, 4) // (1 + gated)
    num_tiles = num_outputs // (1 + gated)
    block_n = next((size for size in (16, 8, 4) if size <= tallest and num_tiles // size >= PROGRAMS_PER_DEVICE), 2)
    return GemvConfig(block_n, 256 * warps, warps)


def to_json(config: Config | None) -> list[Any]:
    """As the table has it: the kernel's name and its constants in the order of their declaration."""
    if config is None:
        return ["torch"]
    name = "gemv" if isinstance(config, GemvConfig) else "skinny"
    return [name, *(getattr(config, field) for field in config.__dataclass_fields__)]


def from_json(entry: list[Any]) -> Config | None:
    """The inverse of to_json."""
    name, *constants = entry
    kernels: dict[str, type[Config]] = {"gemv": GemvConfig, "skinny": SkinnyConfig}
    return None if name == "torch" else kernels[name](*constants)


_Choices = dict[tuple[str, int, int], list[tuple[int, Config | None]]]


@functools.cache
def _table() -> tuple[tuple[int, int] | None, _Choices]:
    """The capability of the device that was measured, and per kind and shape the choices by the most rows they are for."""
    raw = json.loads(TABLE.read_bytes())
    choices = {
        (entry["kind"], entry["num_outputs"], entry["num_inputs"]): [
            (max_rows, from_json(config)) for max_rows, config in entry["choices"]
        ]
        for entry in raw["shapes"]
    }
    return tuple(raw["capability"]) if raw["capability"] else None, choices

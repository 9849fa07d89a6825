"""Times of the engine's kernels in CUDA graphs, against what the card can do and against torch.

    python -m scripts.bench_kernels --out kernels.jsonl
    python -m scripts.bench_kernels --only 'attention|sample'
    python -m scripts.bench_kernels --variants
    python -m scripts.bench_kernels --products-table products.json

One JSON line per case; a table of microseconds, GB/s or TFLOP/s, the share of the read or copy bandwidth or of the
8192 x 8192 x 8192 product measured in the same run, and how many times as fast as torch. --variants measures the layers'
kernels with other constants instead. --products-table measures every matrix product of the three models from 1 to 2,048
tokens, for the cost model.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton  # type: ignore[import-untyped, unused-ignore]

from penstock.kernels import ops
from scripts.attention_cases import decode_attention, prefill_attention
from scripts.graph_timing import graph_microseconds, measure_ceilings, num_copies
from scripts.kernel_cases import (
    PRODUCT_SHAPES,
    Case,
    add_norm_linear_silu_mul,
    add_rms_norm,
    linear,
    random_numbers,
    rms_norm,
    rope_and_cache,
    silu_mul,
)
from scripts.sampling_cases import sample_tokens

DEVICE = torch.device("cuda")
TABLE_TOKENS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
PRODUCT_TOKENS = (1, 4, 16, 64, 256, 1024)
SAMPLING_VOCABULARY = 151_936
NAME_WIDTH = 48

CASES = [
    *(rms_norm(num_tokens, 4096) for num_tokens in (1, 8192)),
    *(add_rms_norm(num_tokens, size) for size in (1024, 2048, 4096) for num_tokens in (1, 32, 256, 8192)),
    add_rms_norm(8192, 5120),
    *(silu_mul(num_tokens, size) for size in (3072, 14336) for num_tokens in (1, 256, 8192)),
    *(rope_and_cache(num_tokens, 32, 8, 128, head_norm=False) for num_tokens in (1, 32, 256, 8192)),
    *(rope_and_cache(num_tokens, 16, 8, 128, head_norm=True) for num_tokens in (1, 32, 256, 8192)),
    rope_and_cache(8192, 32, 8, 64, head_norm=False),
    *(decode_attention(*rows, 32, 8, 128) for rows in ((1, 16_384), (16, 1024), (64, 1024), (256, 1024))),
    decode_attention(128, 1024, 16, 8, 128),
    *(prefill_attention(num_tokens, 32, 8, 128) for num_tokens in (2048, 8192)),
    *(linear(num_tokens, *shape) for shapes in PRODUCT_SHAPES.values() for shape in shapes for num_tokens in PRODUCT_TOKENS),
    *(add_norm_linear_silu_mul(1, *shapes[2]) for shapes in PRODUCT_SHAPES.values()),
    *(
        sample_tokens(num_rows, SAMPLING_VOCABULARY, how)
        for num_rows in (1, 32, 256)
        for how in ("greedy", "random", "filtered")
    ),
]


@dataclass(frozen=True, slots=True)
class Variant:
    """One name of a kernel's module with another value, and the cases that show the difference."""

    module: str
    name: str
    value: Any
    cases: str
    """A regular expression."""


VARIANTS = [
    *(Variant("triton_norms", "ELEMENTS_PER_THREAD", value, "^add_rms_norm") for value in (8, 16, 32)),
    *(Variant("triton_rope", "HEADS_PER_PROGRAM", value, "^rope_and_cache") for value in (4, 8, 16)),
    *(Variant("triton_swiglu", "COLUMNS_PER_PROGRAM", value, "^silu_mul") for value in (1024, 2048, 4096)),
    Variant("triton_norms", "has_pdl", lambda x: False, "^add_rms_norm"),
    Variant("triton_rope", "has_pdl", lambda x: False, "^rope_and_cache"),
    Variant("triton_swiglu", "has_pdl", lambda x: False, "^silu_mul"),
]


def measure(case: Case, ceilings: dict[str, float]) -> dict[str, Any]:
    """One line of the results."""
    copies = [case.make(DEVICE) for _ in range(num_copies(case.footprint_bytes))]
    microseconds = graph_microseconds([calls.ours for calls in copies])
    torch_microseconds = graph_microseconds([calls.torch for calls in copies])
    per_second = case.amount / microseconds * 1e6
    return {
        "case": case.name,
        "microseconds": round(microseconds, 3),
        "torch_microseconds": round(torch_microseconds, 3),
        "unit": "FLOP" if case.ceiling == "matmul" else "B",
        "per_second": round(per_second),
        "ceiling": case.ceiling,
        "ceiling_share": round(per_second / ceilings[case.ceiling], 4),
    }


def table_row(line: dict[str, Any]) -> str:
    """The line for people to read."""
    if "error" in line:
        return f"{line['case']:{NAME_WIDTH}} {line['error'].splitlines()[0]}"
    rate = f"{line['per_second'] / 1e9:6.0f} GB/s   "
    if line["unit"] == "FLOP":
        rate = f"{line['per_second'] / 1e12:6.1f} TFLOP/s"
    share, times_faster = (
        f"{line['ceiling_share']:6.1%} of {line['ceiling']:6}",
        line["torch_microseconds"] / line["microseconds"],
    )
    return f"{line['case']:{NAME_WIDTH}} {line['microseconds']:9.2f} us  {rate}  {share}  {times_faster:5.2f} x torch"


def results(cases: list[Case], ceilings: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Measures the cases; one that fails is a line too, and does not end the run."""
    for case in cases:
        try:
            line = measure(case, ceilings)
        except Exception as error:
            line = {"case": case.name, "error": f"{type(error).__name__}: {error}"}
        print(table_row(line), flush=True)
        yield line
        torch.cuda.empty_cache()


def variant_results(ceilings: dict[str, float], only: str) -> Iterator[dict[str, Any]]:
    for variant in VARIANTS:
        module = importlib.import_module(f"penstock.kernels.{variant.module}")
        usual, value = getattr(module, variant.name), variant.value
        shown = "off" if callable(value) else value
        print(f"-- {variant.module}.{variant.name}: {shown}{' (as it is)' if value == usual else ''}", flush=True)
        setattr(module, variant.name, value)
        cases = [case for case in CASES if re.search(variant.cases, case.name) and re.search(only, case.name)]
        for line in results(cases, ceilings):
            yield {"variant": f"{variant.module}.{variant.name}", "value": shown, **line}
        setattr(module, variant.name, usual)


def product_times(num_in: int, num_out: int) -> dict[str, float]:
    """Microseconds of one product by number of tokens."""
    weights = [random_numbers(num_out, num_in, device=DEVICE) for _ in range(num_copies(2 * num_in * num_out))]
    times = {}
    for num_tokens in TABLE_TOKENS:
        x = random_numbers(num_tokens, num_in, device=DEVICE)
        times[str(num_tokens)] = round(graph_microseconds([partial(ops.linear, x, weight) for weight in weights]), 3)
    return times


def write_products_table(path: Path) -> None:
    """As `penstock.engine.cost_model` reads it."""
    shapes = {shape: model for model, shapes in PRODUCT_SHAPES.items() for shape in shapes}
    products = []
    for (num_in, num_out), model in shapes.items():
        products.append({"in": num_in, "out": num_out, "model": model, "microseconds": product_times(num_in, num_out)})
        print(f"{num_in} -> {num_out}: {products[-1]['microseconds']}", flush=True)
        torch.cuda.empty_cache()
    path.write_text(json.dumps({**versions(), "dtype": "bfloat16", "products": products}, indent=1) + "\n")


def versions() -> dict[str, str]:
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}


def main() -> int:
    parser = argparse.ArgumentParser(description="Times of the engine's kernels in CUDA graphs.")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--variants", action="store_true", help="the layers' kernels with other constants")
    parser.add_argument("--products-table", type=Path, metavar="PATH", help="measure all matrix products into this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_kernels needs a CUDA device", file=sys.stderr)
        return 1
    if arguments.products_table is not None:
        write_products_table(arguments.products_table)
        return 0
    ceilings = measure_ceilings()
    print(", ".join(f"{name} {rate / 1e12:.2f} T{'FLOP' if name == 'matmul' else 'B'}/s" for name, rate in ceilings.items()))
    wanted = [case for case in CASES if re.search(arguments.only, case.name)]
    measured = [{**versions(), "ceilings": ceilings}]
    measured += variant_results(ceilings, arguments.only) if arguments.variants else results(wanted, ceilings)
    if arguments.out is not None:
        with arguments.out.open("a") as out:
            out.writelines(json.dumps(line) + "\n" for line in measured)
    return 1 if any("error" in line for line in measured) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Finds the fastest kernel for each product of few rows, and writes the table that penstock.kernels.product_choices reads.

    python -m scripts.tune_products --out kernels/product_choices.json
    python -m scripts.tune_products --models 1B 0.6B --out some.json

Every candidate is compiled (by several processes, into Triton's cache), checked against float32, and timed in a CUDA graph with
weights that are not in the cache. Ours is chosen where it takes 2% less time than torch's or than separate kernels do. The
first table is of microseconds and TB/s of weights; the second of whole layers' products: with the choices made, without early
starts, with norms in kernels of their own, and with torch's products.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime.jit import JITFunction  # type: ignore[import-untyped, unused-ignore]

from penstock.kernels import ops, triton_gemv, triton_norms, triton_skinny, triton_swiglu
from penstock.kernels.product_choices import Config, Kind, to_json
from penstock.kernels.triton_gemv import GemvConfig, Norm, gemv
from penstock.kernels.triton_skinny import skinny
from scripts.graph_timing import graph_microseconds
from scripts.product_candidates import MODELS, NUM_LAYERS, ROWS, Shape, candidates

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
EPS = 1e-5
ROTATED_BYTES = 256 << 20
MIN_COPIES, MAX_COPIES = 3, 48
WORTH = 0.98
"""Ours must take no more than this share of the other's time."""
TOLERANCE = 1e-2
Choices = dict[tuple[Kind, int, int, int], Config | None]
"""By kind, outputs, inputs and rows; None is torch's product, or separate kernels."""


class Inputs:
    """Tensors of one shape and number of rows, the weights in as many copies as the cache cannot hold."""

    def __init__(self, shape: Shape, num_rows: int, weights: Sequence[Tensor]) -> None:
        self.shape, self.num_rows, self.weights = shape, num_rows, weights
        like = weights[0]
        self.x, self.residual = (torch.randn(num_rows, shape.num_inputs, dtype=DTYPE, device=like.device) for _ in range(2))
        self.norm_weight = torch.randn(shape.num_inputs, dtype=DTYPE, device=like.device)

    def expected(self, kind: Kind) -> Tensor:
        """In float32, for the first copy."""
        x = self.x.float()
        if kind in ("norm", "norm_gated"):
            x = x + self.residual.float()
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.norm_weight.float()
        y = torch.cat([x @ part.float().T for part in self.weights[0].split(1 << 15)], dim=1)
        if kind in ("gated", "norm_gated"):
            gate, up = y.chunk(2, dim=1)
            y = functional.silu(gate) * up
        return y


def product(kind: Kind, inputs: Inputs, weight: Tensor, config: Config | None, choices: Choices) -> Tensor:
    """The product with one candidate, or composed of what was chosen for its parts."""
    gated, normed = kind in ("gated", "norm_gated"), kind in ("norm", "norm_gated")
    if isinstance(config, GemvConfig):
        norm = Norm(inputs.norm_weight, EPS, inputs.residual) if normed else None
        return gemv(inputs.x, weight, None, config, norm=norm, gated=gated)[0]
    if config is not None:
        return skinny(inputs.x, weight, None, config, gated=gated)
    return composed(kind, inputs, inputs.x, weight, choices)


def composed(kind: Kind, inputs: Inputs, x: Tensor, weight: Tensor, choices: Choices) -> Tensor:
    """Of the kernels that are there without the candidate."""
    if kind == "linear":
        return functional.linear(x, weight)
    part: Kind = "linear"
    if kind in ("norm", "norm_gated"):
        x, _ = ops.add_rms_norm(x, inputs.residual, inputs.norm_weight, EPS)
        part = "gated" if kind == "norm_gated" else "linear"
    config = choices.get((part, inputs.shape.num_outputs, inputs.shape.num_inputs, inputs.num_rows))
    if isinstance(config, GemvConfig):
        y = gemv(x, weight, None, config, gated=part == "gated")[0]
    elif config is not None:
        y = skinny(x, weight, None, config, gated=part == "gated")
    else:
        y = composed(part, inputs, x, weight, choices) if part == "gated" else functional.linear(x, weight)
    return ops.silu_mul(y) if kind == "gated" else y


def microseconds(kind: Kind, inputs: Inputs, config: Config | None, choices: Choices) -> float:
    """Per product, in a graph over all copies of the weights."""

    def call(weight: Tensor) -> Callable[[], Tensor]:
        return lambda: product(kind, inputs, weight, config, choices)

    return graph_microseconds([call(weight) for weight in inputs.weights])


def tune(shape: Shape, choices: Choices) -> list[tuple[Kind, int, float, float, Config | None]]:
    """Fills in the choices; rows of the table: kind, rows, microseconds without and with the best candidate, the candidate."""
    size_bytes = 2 * shape.num_outputs * shape.num_inputs
    copies = min(max(-(-ROTATED_BYTES // size_bytes), MIN_COPIES), MAX_COPIES)
    scale = shape.num_inputs**-0.5
    weights = [torch.randn(shape.num_outputs, shape.num_inputs, dtype=DTYPE, device=DEVICE).mul_(scale) for _ in range(copies)]
    table = []
    for num_rows in ROWS:
        inputs = Inputs(shape, num_rows, weights)
        for kind in shape.kinds:
            key = (kind, shape.num_outputs, shape.num_inputs, num_rows)
            choices[key] = None
            tried: list[tuple[float, Config]] = []
            expected = inputs.expected(kind)
            for config in candidates(kind, num_rows, shape):
                error = (product(kind, inputs, weights[0], config, choices).float() - expected).norm() / expected.norm()
                if not error <= TOLERANCE:
                    print(f"WRONG by {error:.1e}: {key} {config}", flush=True)
                    continue
                tried.append((microseconds(kind, inputs, config, choices), config))
            other_us = microseconds(kind, inputs, None, choices)
            best_us, best = min(tried, key=lambda pair: pair[0]) if tried else (other_us, None)
            if best_us <= WORTH * other_us:
                choices[key] = best
            table.append((kind, num_rows, other_us, best_us, best))
    return table


def write(path: Path, choices: Choices) -> None:
    """In the form that product_choices reads."""
    shapes: dict[tuple[Kind, int, int], list[Any]] = {}
    for (kind, num_outputs, num_inputs, num_rows), config in sorted(choices.items(), key=lambda item: item[0]):
        shapes.setdefault((kind, num_outputs, num_inputs), []).append([num_rows, to_json(config)])
    entries = [
        json.dumps({"kind": kind, "num_outputs": n, "num_inputs": k, "choices": rows}) for (kind, n, k), rows in shapes.items()
    ]
    head = f'"capability": {list(torch.cuda.get_device_capability())}, "device": {json.dumps(torch.cuda.get_device_name())}'
    path.write_text("{" + head + ', "shapes": [\n' + ",\n".join(entries) + "\n]}\n")


def compile_share(models: Sequence[str], share: int, num_shares: int) -> None:
    """Puts this process's share of all candidates into Triton's cache; nothing is launched."""
    run = JITFunction.run
    JITFunction.run = lambda self, *args, **options: run(self, *args, **{**options, "warmup": True})
    work = [
        (shape, kind, num_rows, config)
        for model in models
        for shape in MODELS[model]
        for num_rows in ROWS
        for kind in shape.kinds
        for config in candidates(kind, num_rows, shape)
    ]
    for shape, kind, num_rows, config in work[share::num_shares]:
        inputs = Inputs(shape, num_rows, [torch.empty(shape.num_outputs, shape.num_inputs, dtype=DTYPE, device=DEVICE)])
        product(kind, inputs, inputs.weights[0], config, {})
        torch.cuda.empty_cache()


def compile_all(models: Sequence[str], num_processes: int) -> None:
    """compile_share in several processes."""
    command = [sys.executable, "-m", "scripts.tune_products", "--models", *models, "--compile-share"]
    children = [subprocess.Popen([*command, str(share), str(num_processes)]) for share in range(num_processes)]
    for child in children:
        assert child.wait() == 0


def without_early_starts(measure: Callable[[], float]) -> float:
    """Measured with kernels launched the ordinary way."""
    modules: list[ModuleType] = [triton_gemv, triton_skinny, triton_norms, triton_swiglu]
    kept = [vars(module)["has_pdl"] for module in modules]
    for module in modules:
        vars(module)["has_pdl"] = lambda x: False
    try:
        return measure()
    finally:
        for module, has_pdl in zip(modules, kept, strict=True):
            vars(module)["has_pdl"] = has_pdl


def layer_microseconds(model: str, num_rows: int, choices: Choices | None) -> float:
    """One layer's four products with norms and activation, in a graph of all the model's layers; None: torch's products."""
    qkv, o, gate_up, down = MODELS[model][:4]
    layers = [
        [
            torch.randn(s.num_outputs, s.num_inputs, dtype=DTYPE, device=DEVICE).mul_(s.num_inputs**-0.5)
            for s in (qkv, o, gate_up, down)
        ]
        for _ in range(NUM_LAYERS[model])
    ]
    norm_weight = torch.ones(qkv.num_inputs, dtype=DTYPE, device=DEVICE)
    stream = torch.randn(num_rows, qkv.num_inputs, dtype=DTYPE, device=DEVICE)
    attended = torch.randn(num_rows, o.num_inputs, dtype=DTYPE, device=DEVICE)

    def multiply(kind: Kind, shape: Shape, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        gated, normed = kind == "norm_gated", kind in ("norm", "norm_gated")
        config = None if choices is None else choices[kind, shape.num_outputs, shape.num_inputs, num_rows]
        if isinstance(config, GemvConfig):
            return gemv(x, weight, None, config, norm=Norm(norm_weight, EPS, residual) if normed else None, gated=gated)
        if normed:
            x, residual = ops.add_rms_norm(x, residual, norm_weight, EPS)
            part: Kind = "gated" if gated else "linear"
            config = None if choices is None else choices[part, shape.num_outputs, shape.num_inputs, num_rows]
        if isinstance(config, GemvConfig):
            return gemv(x, weight, None, config, gated=gated)[0], residual
        if config is not None:
            return skinny(x, weight, None, config, gated=gated), residual
        y = functional.linear(x, weight)
        return ops.silu_mul(y) if gated else y, residual

    def all_layers() -> Tensor:
        x, residual = stream, stream
        for weights in layers:
            _, residual = multiply("norm", qkv, x, residual, weights[0])
            x, _ = multiply("linear", o, attended, residual, weights[1])
            x, residual = multiply("norm_gated", gate_up, x, residual, weights[2])
            x, _ = multiply("linear", down, x, residual, weights[3])
        return x

    return graph_microseconds([all_layers]) / len(layers)


def print_layers(models: Sequence[str], choices: Choices) -> None:
    """How long a layer's products take, by what they are done with."""
    separate: Choices = {key: None if key[0].startswith("norm") else config for key, config in choices.items()}
    print("\nmicroseconds a layer (products, norms, activation): early starts | ordinary ones | separate norms | torch | floor")
    for model in models:
        floor_us = sum(2 * s.num_outputs * s.num_inputs for s in MODELS[model][:4]) / 4.3e6
        for num_rows in (1, 4, 32):

            def measure(table: Choices | None, model: str = model, num_rows: int = num_rows) -> float:
                return layer_microseconds(model, num_rows, table)

            times = [measure(choices), without_early_starts(lambda: measure(choices)), measure(separate), measure(None)]
            print(f"{model:>5} M={num_rows:<3}", *(f"{time_us:8.2f}" for time_us in times), f"{floor_us:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, help="where the table goes")
    parser.add_argument("--compile-share", nargs=2, type=int, metavar=("SHARE", "OF"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.compile_share is not None:
        compile_share(flags.models, *flags.compile_share)
        return
    started = time.monotonic()
    compile_all(flags.models, max(1, len(os.sched_getaffinity(0)) - 1))
    print(f"compiled after {time.monotonic() - started:.0f} s", flush=True)
    choices: Choices = {}
    print("weight          kind        M   without us  TB/s     ours us  TB/s  constants")
    for model in flags.models:
        for shape in MODELS[model]:
            terabytes = 2e-6 * shape.num_outputs * shape.num_inputs
            for kind, num_rows, other_us, best_us, best in tune(shape, choices):
                rates = f"{other_us:10.2f} {terabytes / other_us:6.2f}  {best_us:10.2f} {terabytes / best_us:6.2f}"
                chosen = "*" if choices[kind, shape.num_outputs, shape.num_inputs, num_rows] is not None else " "
                name = f"{shape.num_inputs}->{shape.num_outputs}"
                print(f"{name:<15} {kind:<10} {num_rows:>3} {rates} {chosen} {to_json(best)}", flush=True)
            torch.cuda.empty_cache()
            if flags.out is not None:
                write(flags.out, choices)
    print(f"tuned after {time.monotonic() - started:.0f} s", flush=True)
    print_layers(flags.models, choices)
    print(f"done after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()

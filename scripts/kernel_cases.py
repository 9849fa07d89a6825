"""What `scripts.bench_kernels` measures: a function per kind of case; here the layers' operations and matrix products.

A case makes its inputs as often as asked, and calls the engine's operation and what torch has for the same. Tests run every
kind on the CPU with small sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock.kernels import ops

DTYPE = torch.bfloat16
EPS = 1e-6
PRODUCT_SHAPES = {
    "8B": [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096), (4096, 128256)],
    "1B": [(2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048), (2048, 128256)],
    "0.6B": [(1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024), (1024, 151936)],
}
"""(in, out) of every matrix product: q, k and v together; attention's output; gate and up together; down; the output head."""


@dataclass(frozen=True, slots=True)
class Calls:
    """The same work twice, on the same inputs."""

    ours: Callable[[], object]
    torch: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    name: str
    ceiling: str
    """What bounds it: "read" or "copy" bandwidth, or "matmul"."""
    amount: int
    """Bytes or operations per call that cannot be avoided."""
    footprint_bytes: int
    """Of the inputs, outputs not counted."""
    make: Callable[[torch.device], Calls]
    """Makes fresh inputs."""


def random_numbers(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, device=device)


def add_rms_norm(num_tokens: int, size: int) -> Case:
    def make(device: torch.device) -> Calls:
        x, residual = (random_numbers(num_tokens, size, device=device) for _ in range(2))
        weight = random_numbers(size, device=device)

        def of_torch() -> tuple[Tensor, Tensor]:
            new_residual = x + residual
            return functional.rms_norm(new_residual, (size,), weight, EPS), new_residual

        return Calls(lambda: ops.add_rms_norm(x, residual, weight, EPS), of_torch)

    num_bytes = 2 * num_tokens * size
    return Case(f"add_rms_norm {num_tokens}x{size}", "copy", 4 * num_bytes, 2 * num_bytes, make)


def rms_norm(num_tokens: int, size: int) -> Case:
    def make(device: torch.device) -> Calls:
        x, weight = random_numbers(num_tokens, size, device=device), random_numbers(size, device=device)
        return Calls(lambda: ops.rms_norm(x, weight, EPS), lambda: functional.rms_norm(x, (size,), weight, EPS))

    num_bytes = 2 * num_tokens * size
    return Case(f"rms_norm {num_tokens}x{size}", "copy", 2 * num_bytes, num_bytes, make)


def silu_mul(num_tokens: int, size: int) -> Case:
    def make(device: torch.device) -> Calls:
        gate_up = random_numbers(num_tokens, 2 * size, device=device)
        return Calls(lambda: ops.silu_mul(gate_up), lambda: functional.silu(gate_up[:, :size]) * gate_up[:, size:])

    num_bytes = 2 * num_tokens * size
    return Case(f"silu_mul {num_tokens}x{size}", "copy", 3 * num_bytes, 2 * num_bytes, make)


def rope_and_cache(
    num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, *, head_norm: bool, block_size: int = 16
) -> Case:
    def make(device: torch.device) -> Calls:
        fused = random_numbers(num_tokens, num_heads + 2 * num_kv_heads, head_dim, device=device)
        q, k, v = torch.split(fused, [num_heads, num_kv_heads, num_kv_heads], 1)
        num_blocks = -(-num_tokens // block_size)
        k_cache, v_cache = ops.make_kv_cache(num_blocks, block_size, num_kv_heads, head_dim, DTYPE, device)
        kv_slots = torch.randperm(num_blocks * block_size, device=device)[:num_tokens]
        positions = torch.arange(num_tokens, device=device)
        angles = torch.rand(num_tokens, head_dim // 2, device=device) * 6
        cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
        weight = random_numbers(head_dim, device=device) if head_norm else None

        def of_torch() -> Tensor:
            cos, sin = (part.to(DTYPE).unsqueeze(1) for part in cos_sin[positions].chunk(2, 1))

            def rotated(x: Tensor) -> Tensor:
                if weight is not None:
                    x = functional.rms_norm(x, (head_dim,), weight, EPS)
                first, second = x.chunk(2, 2)
                return torch.cat((first * cos - second * sin, second * cos + first * sin), 2)

            blocks, offsets = kv_slots // block_size, kv_slots % block_size
            k_cache[blocks, :, offsets] = rotated(k)
            v_cache[blocks, :, offsets] = v
            return rotated(q)

        return Calls(
            lambda: ops.rope_and_cache(q, k, v, positions, cos_sin, k_cache, v_cache, kv_slots, weight, weight, EPS),
            of_torch,
        )

    num_bytes = 2 * num_tokens * (num_heads + 2 * num_kv_heads) * head_dim
    name = f"rope_and_cache {num_tokens}x({num_heads}+2*{num_kv_heads})x{head_dim}{' head norm' if head_norm else ''}"
    return Case(name, "copy", 2 * num_bytes, 2 * num_bytes, make)


def linear(num_tokens: int, num_in: int, num_out: int) -> Case:
    def make(device: torch.device) -> Calls:
        x, weight = random_numbers(num_tokens, num_in, device=device), random_numbers(num_out, num_in, device=device)
        return Calls(lambda: ops.linear(x, weight), lambda: functional.linear(x, weight))

    return _product_case(f"linear {num_tokens}x{num_in}->{num_out}", num_tokens, num_in, num_out, make)


def add_norm_linear_silu_mul(num_tokens: int, num_in: int, num_out: int) -> Case:
    def make(device: torch.device) -> Calls:
        x, residual = (random_numbers(num_tokens, num_in, device=device) for _ in range(2))
        norm_weight, weight = (
            random_numbers(num_in, device=device),
            random_numbers(num_out, num_in, device=device) * num_in**-0.5,
        )

        def of_torch() -> tuple[Tensor, Tensor]:
            new_residual = x + residual
            gate, up = functional.linear(functional.rms_norm(new_residual, (num_in,), norm_weight, EPS), weight).chunk(2, 1)
            return functional.silu(gate) * up, new_residual

        return Calls(lambda: ops.add_norm_linear_silu_mul(x, residual, norm_weight, EPS, weight), of_torch)

    return _product_case(f"add_norm_linear_silu_mul {num_tokens}x{num_in}->{num_out}", num_tokens, num_in, num_out, make)


def _product_case(name: str, num_tokens: int, num_in: int, num_out: int, make: Callable[[torch.device], Calls]) -> Case:
    """Bound by the weights' bytes for few tokens, by arithmetic for many."""
    weight_bytes = 2 * num_in * num_out
    if num_tokens <= 128:
        return Case(name, "read", weight_bytes, weight_bytes, make)
    return Case(name, "matmul", 2 * num_tokens * num_in * num_out, weight_bytes, make)

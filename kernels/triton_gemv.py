"""Products of one to four rows: every program streams a few rows of the weights and sums in float32, without matrix units.

The weights pass through the registers once, in 16-byte loads; a thread keeps one sum per (row of x, row of the weights), so
that a program has all of its loads of one step along K in flight at once. The norm before the product may be part of it:
norm(h) @ W.T = (h * g) @ W.T / rms(h), so the sum of squares is collected along the way and applied at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .triton_launch import has_pdl
from .triton_prefetch import prefetchable, start_early

MAX_ROWS = 4
LANE_ELEMENTS = tl.constexpr(8)
"""Neighbours along K that one thread multiplies and adds before they join its sums: 16 bytes of bf16."""


@dataclass(frozen=True, slots=True)
class GemvConfig:
    """Constants of one launch. With BLOCK_K = 256 * warps every element of x is held by one thread alone."""

    block_n: int
    block_k: int
    warps: int
    stages: int = 1
    """Above 1 the weights are staged through shared memory, that many steps along K ahead."""
    prefetch: int = 1
    """Steps along K that are asked for before the kernel ahead has ended."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sums(b_weight, b_x, M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """[1, BLOCK_N, BLOCK_K] times [M, 1, BLOCK_K] -> float32 [M, BLOCK_N, BLOCK_K // LANE_ELEMENTS], one per thread's run."""
    b_products = b_weight.to(tl.float32) * b_x
    return tl.sum(tl.reshape(b_products, (M, BLOCK_N, BLOCK_K // LANE_ELEMENTS, LANE_ELEMENTS)), axis=3)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator, unused-ignore]
def _gemv_kernel(  # type: ignore[no-untyped-def]
    x,
    residual,
    norm_weight,
    weight,
    bias,
    out,
    new_residual,
    num_rows,
    num_outputs,
    eps,
    K: tl.constexpr,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    GATED: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """out [num_rows, num_outputs]; x, residual [num_rows, K]; weight [num_outputs, K], with GATED [2 * num_outputs, K]."""
    pid = tl.program_id(0)
    first = pid * BLOCK_N
    if PDL:
        start_early(weight, first, num_outputs, K, BLOCK_N, PREFETCH, GATED)
    i_m = tl.arange(0, M)[:, None, None]
    i_n = first + tl.arange(0, BLOCK_N)[None, :, None]
    in_m = i_m < num_rows
    in_n = i_n < num_outputs
    b_sums = tl.zeros((M, BLOCK_N, BLOCK_K // LANE_ELEMENTS), tl.float32)
    b_up_sums = b_sums
    b_squares = tl.zeros((M, 1, BLOCK_K // LANE_ELEMENTS), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        i_k = k + tl.arange(0, BLOCK_K)[None, None, :]
        in_k = i_k < K
        weight_offsets = i_n.to(tl.int64) * K + i_k
        b_weight = tl.load(weight + weight_offsets, mask=in_n & in_k, other=0.0, eviction_policy="evict_first")
        if GATED:
            up_offsets = (i_n + num_outputs).to(tl.int64) * K + i_k
            b_up = tl.load(weight + up_offsets, mask=in_n & in_k, other=0.0, eviction_policy="evict_first")
        b_x = tl.load(x + i_m * K + i_k, mask=in_m & in_k, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            b_x += tl.load(residual + i_m * K + i_k, mask=in_m & in_k, other=0.0).to(tl.float32)
            if pid == 0:  # a branch, not a mask: mixed with the weights, the 16-bit addition that LLVM makes of it kills ptxas
                tl.store(new_residual + i_m * K + i_k, b_x.to(new_residual.dtype.element_ty), mask=in_m & in_k)
        if HAS_NORM:
            b_squares += tl.sum(tl.reshape(b_x * b_x, (M, 1, BLOCK_K // LANE_ELEMENTS, LANE_ELEMENTS)), axis=3)
            b_x *= tl.load(norm_weight + i_k, mask=in_k, other=0.0).to(tl.float32)
        b_sums += _sums(b_weight, b_x, M, BLOCK_N, BLOCK_K)
        if GATED:
            b_up_sums += _sums(b_up, b_x, M, BLOCK_N, BLOCK_K)
    b_out = tl.sum(b_sums, axis=2)
    b_scale = tl.full((M, 1), 1.0, tl.float32)
    if HAS_NORM:
        b_scale = tl.rsqrt(tl.sum(b_squares, axis=2) / K + eps)
        b_out *= b_scale
    i_m = tl.arange(0, M)[:, None]
    i_n = first + tl.arange(0, BLOCK_N)[None, :]
    in_n = i_n < num_outputs
    if HAS_BIAS:
        b_out += tl.load(bias + i_n, mask=in_n, other=0.0).to(tl.float32)
    if GATED:
        b_up_out = tl.sum(b_up_sums, axis=2) * b_scale
        if HAS_BIAS:
            b_up_out += tl.load(bias + num_outputs + i_n, mask=in_n, other=0.0).to(tl.float32)
        b_out = b_out / (1.0 + tl.exp(-b_out)) * b_up_out
    tl.store(out + i_m * num_outputs + i_n, b_out.to(out.dtype.element_ty), mask=(i_m < num_rows) & in_n)


@dataclass(frozen=True, slots=True)
class Norm:
    """The RMS norm in front of a product, with the addition before it where there is a residual [M, K]."""

    weight: Tensor
    eps: float
    residual: Tensor | None


def gemv(
    x: Tensor, weight: Tensor, bias: Tensor | None, config: GemvConfig, *, norm: Norm | None = None, gated: bool = False
) -> tuple[Tensor, Tensor]:
    """(the product [M, N], x plus the residual), x [M, K] with M <= 4, weight [N, K], all contiguous and of one dtype.

    `norm` is applied to the sum before the product, silu(gate) * up behind it where `gated` (then weight and bias hold 2 * N
    rows, gates first). Without a residual the second result is x itself. A row's result depends on its own input alone.
    """
    (num_rows, num_inputs), num_outputs = x.shape, weight.shape[0] // (2 if gated else 1)
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    residual = None if norm is None else norm.residual
    new_residual = x if residual is None else torch.empty_like(x)
    pdl = has_pdl(x)
    _gemv_kernel[(triton.cdiv(num_outputs, config.block_n),)](
        x,
        residual,
        None if norm is None else norm.weight,
        weight,
        bias,
        out,
        new_residual,
        num_rows,
        num_outputs,
        0.0 if norm is None else norm.eps,
        K=num_inputs,
        M=triton.next_power_of_2(num_rows),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        STAGES=config.stages,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_NORM=norm is not None,
        GATED=gated,
        PREFETCH=prefetchable(config.prefetch * config.block_k, num_inputs),
        PDL=pdl,
        num_warps=config.warps,
        launch_pdl=pdl,
    )
    return out, new_residual

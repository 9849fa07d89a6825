"""Products of up to 64 rows on the matrix units: the weights are the tall side of the tiles, the rows of x the narrow one.

Where the tiles of the output are too few for the device, K is cut into parts of fixed length; their float32 sums go to memory
and a second kernel adds them in order. So a row's result depends on its own input and on the constants alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .triton_launch import has_pdl
from .triton_prefetch import prefetchable, start_early

MAX_ROWS = 64
SUM_BLOCK = 256
"""Outputs that one program of the second kernel adds up."""


@dataclass(frozen=True, slots=True)
class SkinnyConfig:
    """Constants of one launch."""

    block_n: int
    block_k: int
    split_k: int
    warps: int
    stages: int
    prefetch: int = 2
    """Steps along K that are asked for before the kernel ahead has ended."""


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator, unused-ignore]
def _skinny_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    num_rows,
    num_outputs,
    K: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """out [num_rows, num_outputs] in x's dtype, or float32 [parts, num_rows, num_outputs]: the sums over PART columns each."""
    first, k_first = tl.program_id(0) * BLOCK_N, tl.program_id(1) * PART
    if PDL:
        start_early(weight + k_first, first, num_outputs, K, BLOCK_N, PREFETCH, GATED)
    i_n = first + tl.arange(0, BLOCK_N)
    i_m = tl.arange(0, BLOCK_M)
    in_n, in_m = i_n < num_outputs, i_m < num_rows
    weight_rows = weight + i_n.to(tl.int64)[:, None] * K
    up_rows = weight + (i_n + num_outputs).to(tl.int64)[:, None] * K
    b_out = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    b_up_out = b_out
    for k in tl.range(0, PART, BLOCK_K, num_stages=STAGES):
        i_k = k_first + k + tl.arange(0, BLOCK_K)[None, :]
        in_k = i_k < tl.minimum(k_first + PART, K)
        b_x = tl.trans(tl.load(x + i_m[:, None] * K + i_k, mask=in_m[:, None] & in_k, other=0.0))
        b_weight = tl.load(weight_rows + i_k, mask=in_n[:, None] & in_k, other=0.0)
        b_out = tl.dot(b_weight, b_x, b_out, input_precision="ieee")
        if GATED:
            b_up = tl.load(up_rows + i_k, mask=in_n[:, None] & in_k, other=0.0)
            b_up_out = tl.dot(b_up, b_x, b_up_out, input_precision="ieee")
    if HAS_BIAS:
        b_out += tl.load(bias + i_n, mask=in_n, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if HAS_BIAS:
            b_up_out += tl.load(bias + num_outputs + i_n, mask=in_n, other=0.0).to(tl.float32)[:, None]
        b_out = b_out / (1.0 + tl.exp(-b_out)) * b_up_out
    row = tl.program_id(1) * num_rows + i_m
    offsets = row[None, :].to(tl.int64) * num_outputs + i_n[:, None]
    tl.store(out + offsets, b_out.to(out.dtype.element_ty), mask=in_n[:, None] & in_m[None, :])


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator, unused-ignore]
def _add_parts_kernel(  # type: ignore[no-untyped-def]
    parts,
    bias,
    out,
    num_rows,
    num_outputs,
    NUM_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    """parts float32 [NUM_PARTS, num_rows, W] -> out [num_rows, num_outputs]; W is num_outputs, or with GATED twice that."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    width = num_outputs * 2 if GATED else num_outputs
    row = tl.program_id(1)
    i_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_n = i_n < num_outputs
    b_out = tl.zeros((BLOCK,), tl.float32)
    b_up_out = b_out
    for i_part in tl.static_range(NUM_PARTS):
        offsets = (i_part * num_rows + row) * width + i_n
        b_out += tl.load(parts + offsets, mask=in_n, other=0.0)
        if GATED:
            b_up_out += tl.load(parts + offsets + num_outputs, mask=in_n, other=0.0)
    if HAS_BIAS:
        b_out += tl.load(bias + i_n, mask=in_n, other=0.0).to(tl.float32)
    if GATED:
        if HAS_BIAS:
            b_up_out += tl.load(bias + num_outputs + i_n, mask=in_n, other=0.0).to(tl.float32)
        b_out = b_out / (1.0 + tl.exp(-b_out)) * b_up_out
    tl.store(out + row * num_outputs + i_n, b_out.to(out.dtype.element_ty), mask=in_n)


def skinny(x: Tensor, weight: Tensor, bias: Tensor | None, config: SkinnyConfig, *, gated: bool = False) -> Tensor:
    """The product [M, N] of x [M, K], M <= 64, and weight [N, K], contiguous and of one dtype.

    Where `gated`, weight and bias hold 2 * N rows, gates first, and the result is silu(gate) * up.
    """
    (num_rows, num_inputs), num_outputs = x.shape, weight.shape[0] // (2 if gated else 1)
    part = triton.cdiv(triton.cdiv(num_inputs, config.block_k), config.split_k) * config.block_k
    num_parts = triton.cdiv(num_inputs, part)
    pdl = has_pdl(x)
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    sums, width = out, num_outputs
    if num_parts > 1:
        width = weight.shape[0]
        sums = torch.empty(num_parts, num_rows, width, dtype=torch.float32, device=x.device)
    _skinny_kernel[(triton.cdiv(width, config.block_n), num_parts)](
        x,
        weight,
        bias,
        sums,
        num_rows,
        width,
        K=num_inputs,
        PART=part,
        BLOCK_M=max(16, triton.next_power_of_2(num_rows)),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        STAGES=config.stages,
        HAS_BIAS=bias is not None and num_parts == 1,
        GATED=gated and num_parts == 1,
        PREFETCH=prefetchable(config.prefetch * config.block_k, num_inputs - (num_parts - 1) * part),
        PDL=pdl,
        num_warps=config.warps,
        num_stages=config.stages,
        launch_pdl=pdl,
    )
    if num_parts > 1:
        _add_parts_kernel[(triton.cdiv(num_outputs, SUM_BLOCK), num_rows)](
            sums,
            bias,
            out,
            num_rows,
            num_outputs,
            NUM_PARTS=num_parts,
            BLOCK=SUM_BLOCK,
            HAS_BIAS=bias is not None,
            GATED=gated,
            PDL=pdl,
            num_warps=2,
            launch_pdl=pdl,
        )
    return out

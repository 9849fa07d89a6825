"""RMSNorm, with and without the residual's addition, as one pass over memory: a program per row.

A row's result depends on nothing but the row: how it is summed is fixed by its length.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .triton_launch import has_pdl

ELEMENTS_PER_THREAD = 16
"""Two 16-byte accesses per tensor in the 2-byte types: enough in flight for bandwidth, and few steps for a lone row."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ops.rms_norm."""
    rows = x.reshape(-1, x.shape[-1])
    normed = torch.empty_like(rows, memory_format=torch.contiguous_format)
    _launch(rows, None, weight, normed, None, eps)
    return normed.view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ops.add_rms_norm."""
    normed, new_residual = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    _launch(x, residual, weight, normed, new_residual, eps)
    return normed, new_residual


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, normed: Tensor, new_residual: Tensor | None, eps: float
) -> None:
    num_rows, size = x.shape
    assert x.stride(1) == 1
    assert weight.is_contiguous()
    assert residual is None or residual.stride(1) == 1
    if num_rows == 0:
        return
    block = triton.next_power_of_2(size)
    pdl = has_pdl(x)
    _rms_norm_kernel[(num_rows,)](
        x,
        residual,
        weight,
        normed,
        new_residual,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        SIZE=size,
        BLOCK=block,
        PDL=pdl,
        num_warps=min(max(block // (32 * ELEMENTS_PER_THREAD), 1), 16),
        launch_pdl=pdl,
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _rms_norm_kernel(  # type: ignore[no-untyped-def]
    x,
    residual,  # None: nothing is added
    weight,
    normed,
    new_residual,
    x_row_stride,
    residual_row_stride,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    i_row = tl.program_id(0).to(tl.int64)
    i_column = tl.arange(0, BLOCK)
    inside = i_column < SIZE
    b_weight = tl.load(weight + i_column, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    b_x = tl.load(x + i_row * x_row_stride + i_column, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        b_x += tl.load(residual + i_row * residual_row_stride + i_column, mask=inside, other=0.0).to(tl.float32)
        b_sum = b_x.to(new_residual.dtype.element_ty)
        tl.store(new_residual + i_row * SIZE + i_column, b_sum, mask=inside)
        b_x = b_sum.to(tl.float32)
    scale = tl.rsqrt(tl.sum(b_x * b_x, 0) / SIZE + eps)
    # Rounded before the weight, as the models' own code does.
    b_normed = (b_x * scale).to(normed.dtype.element_ty).to(tl.float32) * b_weight.to(tl.float32)
    tl.store(normed + i_row * SIZE + i_column, b_normed.to(normed.dtype.element_ty), mask=inside)

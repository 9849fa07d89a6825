"""silu(gate) * up in one pass over memory: a program per piece of a row."""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .triton_launch import has_pdl

COLUMNS_PER_PROGRAM = 2048
NUM_WARPS = 4
"""Two 16-byte accesses per thread to gate and to up in the 2-byte types."""


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ops.silu_mul."""
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1
    product = gate_up.new_empty(num_rows, size)
    if num_rows == 0:
        return product
    block = min(triton.next_power_of_2(size), COLUMNS_PER_PROGRAM)
    pdl = has_pdl(gate_up)
    _silu_mul_kernel[(num_rows * triton.cdiv(size, block),)](
        gate_up, product, gate_up.stride(0), SIZE=size, BLOCK=block, PDL=pdl, num_warps=NUM_WARPS, launch_pdl=pdl
    )
    return product


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _silu_mul_kernel(  # type: ignore[no-untyped-def]
    gate_up, product, gate_up_row_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    pieces_per_row: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    i_row = (tl.program_id(0) // pieces_per_row).to(tl.int64)
    i_column = tl.program_id(0) % pieces_per_row * BLOCK + tl.arange(0, BLOCK)
    inside = i_column < SIZE
    gate = gate_up + i_row * gate_up_row_stride
    if PDL:
        tl.extra.cuda.gdc_wait()
    b_gate = tl.load(gate + i_column, mask=inside, other=0.0).to(tl.float32)
    b_up = tl.load(gate + SIZE + i_column, mask=inside, other=0.0).to(tl.float32)
    b_product = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
    tl.store(product + i_row * SIZE + i_column, b_product.to(product.dtype.element_ty), mask=inside)

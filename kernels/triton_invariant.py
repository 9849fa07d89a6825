"""The batch-invariant product on the GPU: one tile shape and one order along K, however many rows there are."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, STAGES, WARPS = 64, 64, 64, 8, 5, 4
"""64 outputs a tile leave a 4,096 wide layer 64 programs at batch 1; taller tiles would be faster for prompts alone."""


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator, unused-ignore]
def _invariant_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    num_rows,
    num_outputs,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """out [num_rows, num_outputs]; the programs of GROUP_M neighbouring row tiles run together, so that they share weights."""
    pid, tiles_m, tiles_n = tl.program_id(0), tl.cdiv(num_rows, BLOCK_M), tl.cdiv(num_outputs, BLOCK_N)
    first_m = pid // (GROUP_M * tiles_n) * GROUP_M
    group_m = tl.minimum(tiles_m - first_m, GROUP_M)
    i_m = (first_m + pid % (GROUP_M * tiles_n) % group_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_n = pid % (GROUP_M * tiles_n) // group_m * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = i_m < num_rows, i_n < num_outputs
    x_rows, weight_rows = x + i_m.to(tl.int64)[:, None] * K, weight + i_n.to(tl.int64)[:, None] * K
    b_out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(0, K, BLOCK_K):
        i_k = k + tl.arange(0, BLOCK_K)[None, :]
        b_x = tl.load(x_rows + i_k, mask=in_m[:, None] & (i_k < K), other=0.0)
        b_weight = tl.load(weight_rows + i_k, mask=in_n[:, None] & (i_k < K), other=0.0)
        b_out = tl.dot(b_x, tl.trans(b_weight), b_out, input_precision="ieee")
    if HAS_BIAS:
        b_out += tl.load(bias + i_n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    offsets = i_m.to(tl.int64)[:, None] * num_outputs + i_n[None, :]
    tl.store(out + offsets, b_out.to(out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


def invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ops.invariant_linear; x [M, K] and weight [N, K] contiguous."""
    (num_rows, num_inputs), num_outputs = x.shape, weight.shape[0]
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    # A float32 tile is twice as large; its stages must fit the smallest shared memory (99 KiB) all the same.
    stages = STAGES if x.element_size() == 2 else 2
    _invariant_kernel[(triton.cdiv(num_rows, BLOCK_M) * triton.cdiv(num_outputs, BLOCK_N),)](
        x,
        weight,
        bias,
        out,
        num_rows,
        num_outputs,
        K=num_inputs,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        GROUP_M=GROUP_M,
        HAS_BIAS=bias is not None,
        num_warps=WARPS,
        num_stages=stages,
    )
    return out

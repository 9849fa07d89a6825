"""Plain-PyTorch twins of the layers' element-wise operations. Arithmetic in float32, results in the input's dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ops.rms_norm. Rounds to x's dtype before the weight, as the models' own code does."""
    x_float = x.float()
    scale = torch.rsqrt(x_float.square().mean(-1, keepdim=True) + eps)
    return weight * (x_float * scale).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ops.add_rms_norm."""
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps), new_residual


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ops.silu_mul."""
    gate, up = gate_up.chunk(2, dim=-1)
    if gate_up.dtype == torch.float32:
        return torch.nn.functional.silu(gate) * up
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate_up.dtype)


def invariant_silu_mul(gate_up: Tensor) -> Tensor:
    """See ops.invariant_silu_mul. A row at a time: what libraries vectorize, and where threads take turns, depends on the shape
    of the whole, and exponentials that are computed differently differ in the last bit."""
    product = torch.empty_like(gate_up[:, : gate_up.shape[1] // 2])
    for own, row in zip(product, gate_up, strict=True):
        own.copy_(silu_mul(row))
    return product


def rope_and_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_slots: Tensor,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    eps: float,
) -> Tensor:
    """See ops.rope_and_cache."""
    real = kv_slots >= 0
    if q_norm_weight is not None:
        q = rms_norm(q, q_norm_weight, eps)
    if k_norm_weight is not None:
        k = rms_norm(k, k_norm_weight, eps)
    cos, sin = cos_sin.index_select(0, positions * real).unsqueeze(1).chunk(2, dim=-1)  # [T, 1, D / 2]
    block_size = k_cache.shape[2]
    slots = kv_slots[real]
    blocks = torch.div(slots, block_size, rounding_mode="floor")
    offsets = slots - blocks * block_size
    k_cache[blocks, :, offsets] = _rotate(k, cos, sin)[real]
    v_cache[blocks, :, offsets] = v[real]
    return _rotate(q, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + D / 2) of the last dimension."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

"""The products on the GPU: our kernels where they were found to be faster, torch's elsewhere. Contracts as in ops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import ops
from .product_choices import Config, Kind, choose
from .triton_gemv import GemvConfig, Norm, gemv
from .triton_skinny import MAX_ROWS, skinny


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ops.linear."""
    config = _choice("linear", x, weight)
    if config is None:
        return functional.linear(x, weight, bias)
    return gemv(x, weight, bias, config)[0] if isinstance(config, GemvConfig) else skinny(x, weight, bias, config)


def linear_silu_mul(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ops.linear_silu_mul."""
    config = _choice("gated", x, weight)
    if config is None:
        return ops.silu_mul(linear(x, weight, bias))
    if isinstance(config, GemvConfig):
        return gemv(x, weight, bias, config, gated=True)[0]
    return skinny(x, weight, bias, config, gated=True)


def add_norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ops.add_norm_linear."""
    config = _choice("norm", x, weight)
    if isinstance(config, GemvConfig):
        return gemv(x, weight, bias, config, norm=Norm(norm_weight, eps, residual))
    normed, new_residual = _add_norm(x, residual, norm_weight, eps)
    return linear(normed, weight, bias), new_residual


def add_norm_linear_silu_mul(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ops.add_norm_linear_silu_mul."""
    config = _choice("norm_gated", x, weight)
    if isinstance(config, GemvConfig):
        return gemv(x, weight, bias, config, norm=Norm(norm_weight, eps, residual), gated=True)
    normed, new_residual = _add_norm(x, residual, norm_weight, eps)
    return linear_silu_mul(normed, weight, bias), new_residual


def _add_norm(x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if residual is None:
        return ops.rms_norm(x, norm_weight, eps), x
    return ops.add_rms_norm(x, residual, norm_weight, eps)


def _choice(kind: Kind, x: Tensor, weight: Tensor) -> Config | None:
    """None for what our kernels do not take."""
    if not 0 < x.shape[0] <= MAX_ROWS or x.dtype not in (torch.bfloat16, torch.float16):
        return None
    if not (x.is_contiguous() and weight.is_contiguous()):
        return None
    return choose(kind, x.shape[0], weight.shape[0], weight.shape[1], x.get_device())

"""Plain-PyTorch twins of the matrix products. Biases, norms and activations as in `reference_layers`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import reference_layers

INVARIANT_ROWS = 16
"""Rows of every product that invariant_linear asks for."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See ops.linear."""
    return functional.linear(x, weight, bias)


def linear_silu_mul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See ops.linear_silu_mul."""
    return reference_layers.silu_mul(linear(x, weight, bias))


def add_norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See ops.add_norm_linear."""
    normed, new_residual = _add_norm(x, residual, norm_weight, eps)
    return linear(normed, weight, bias), new_residual


def add_norm_linear_silu_mul(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See ops.add_norm_linear_silu_mul."""
    normed, new_residual = _add_norm(x, residual, norm_weight, eps)
    return linear_silu_mul(normed, weight, bias), new_residual


def _add_norm(x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if residual is None:
        return reference_layers.rms_norm(x, norm_weight, eps), x
    return reference_layers.add_rms_norm(x, residual, norm_weight, eps)


def invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See ops.invariant_linear. Libraries choose how to sum by the product's shape: here it is the same for any M.

    The rows go in blocks of INVARIANT_ROWS, the last filled up with zeros. Within one shape a row's place and its neighbours do
    not matter, which a test checks for the library at hand.
    """
    num_rows = x.shape[0]
    padded = functional.pad(x, (0, 0, 0, -num_rows % INVARIANT_ROWS))
    if padded.shape[0] == INVARIANT_ROWS:
        return functional.linear(padded, weight, bias)[:num_rows]
    out = torch.empty(padded.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    for start in range(0, padded.shape[0], INVARIANT_ROWS):
        rows = slice(start, start + INVARIANT_ROWS)
        out[rows] = functional.linear(padded[rows], weight, bias)
    return out[:num_rows]

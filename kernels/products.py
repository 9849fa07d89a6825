"""The matrix products a model is built with: as fast as can be, or bitwise the same for a row in any batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from . import ops


class Linear(Protocol):
    """Like ops.linear."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor: ...


class AddNormLinear(Protocol):
    """Like ops.add_norm_linear."""

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Products:
    """One function for each way layers multiply."""

    linear: Linear
    linear_silu_mul: Linear
    add_norm_linear: AddNormLinear
    add_norm_linear_silu_mul: AddNormLinear


def _invariant_linear_silu_mul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return ops.invariant_silu_mul(ops.invariant_linear(x, weight, bias))


def _invariant_add_norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    normed, new_residual = _add_norm(x, residual, norm_weight, eps)
    return ops.invariant_linear(normed, weight, bias), new_residual


def _invariant_add_norm_linear_silu_mul(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    normed, new_residual = _add_norm(x, residual, norm_weight, eps)
    return _invariant_linear_silu_mul(normed, weight, bias), new_residual


def _add_norm(x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if residual is None:
        return ops.rms_norm(x, norm_weight, eps), x
    return ops.add_rms_norm(x, residual, norm_weight, eps)


FAST = Products(ops.linear, ops.linear_silu_mul, ops.add_norm_linear, ops.add_norm_linear_silu_mul)
INVARIANT = Products(
    ops.invariant_linear,
    _invariant_linear_silu_mul,
    _invariant_add_norm_linear,
    _invariant_add_norm_linear_silu_mul,
)

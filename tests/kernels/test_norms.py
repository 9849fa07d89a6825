"""Norms and activation against float64."""

from __future__ import annotations

import pytest
import torch

from penstock.kernels import ops
from tests.kernels.comparing import DEVICES, DTYPES, assert_close, random_tensor

pytestmark = pytest.mark.usefixtures("poisoned_empty")
SHAPES = [(1, 1), (3, 7), (5, 123), (2, 4, 64), (17, 1025)]


def naive_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps) * weight.double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_equals_its_definition(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = random_tensor(*shape, dtype=dtype, device=device) * 3
    weight = random_tensor(shape[-1], dtype=dtype, device=device)
    actual = ops.rms_norm(x, weight, 1e-5)
    assert actual.dtype == dtype
    assert_close(actual, naive_rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("device", DEVICES)
def test_rms_norm_of_tiny_values_depends_on_eps(device: str) -> None:
    x = random_tensor(4, 32, device=device) * 1e-4
    weight = torch.ones(32, device=device)
    assert_close(ops.rms_norm(x, weight, 1e-2), naive_rms_norm(x, weight, 1e-2))


@pytest.mark.parametrize("device", DEVICES)
def test_rms_norm_squares_in_float32(device: str) -> None:
    x = torch.full((2, 8), 300.0, dtype=torch.float16, device=device)  # its square overflows float16
    assert_close(ops.rms_norm(x, torch.ones(8, dtype=torch.float16, device=device), 1e-6), torch.ones(2, 8))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm_norms_the_sum_and_returns_it(dtype: torch.dtype, device: str) -> None:
    x, residual = (random_tensor(5, 67, dtype=dtype, device=device) for _ in range(2))
    x_before, residual_before = x.clone(), residual.clone()
    weight = random_tensor(67, dtype=dtype, device=device)
    normed, new_residual = ops.add_rms_norm(x, residual, weight, 1e-6)
    assert normed.dtype == new_residual.dtype == dtype
    assert_close(new_residual, x_before.double() + residual_before.double())
    assert_close(normed, naive_rms_norm(new_residual, weight, 1e-6))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 33, 512])
def test_silu_mul_takes_the_gate_from_the_first_half(size: int, dtype: torch.dtype, device: str) -> None:
    gate_up = random_tensor(3, 2 * size, dtype=dtype, device=device) * 4
    gate, up = gate_up.double()[:, :size], gate_up.double()[:, size:]
    actual = ops.silu_mul(gate_up)
    assert actual.dtype == dtype
    assert_close(actual, gate / (1 + torch.exp(-gate)) * up)

"""Where the kernels' tests run, how close to float64 the result must be there, and that nobody waits for a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where a test calls a Triton kernel: compiled on a GPU, or interpreted on CPU tensors (tests/conftest.py decides)."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TRITON_DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
"""The interpreter truncates where it should round to bfloat16."""
_TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
"""Root mean square of the difference, relative to the expected values': float32 sums, or one rounding of the result."""


def assert_close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """`actual` must be finite and as near to float64 `expected` as its dtype allows, times `factor`."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    difference = (actual.double().cpu() - expected.double().cpu()).square().mean().sqrt()
    allowed = _TOLERANCES[actual.dtype] * factor * expected.double().square().mean().sqrt().cpu()
    assert difference <= allowed, f"off by {difference:.2e} (root mean square), {allowed:.2e} are allowed"


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Normal random numbers, the same on every device."""
    return torch.randn(shape).to(device=device, dtype=dtype)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Operations that wait for the GPU raise RuntimeError meanwhile, as far as torch knows them."""
    with warnings.catch_warnings():
        # torch says so, once per process, after it has set the mode: as an error it would leave the mode behind.
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

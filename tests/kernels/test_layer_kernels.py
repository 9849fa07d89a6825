"""The layers' Triton kernels against their twins, and what they take of a GPU."""

from __future__ import annotations

import torch

from penstock.kernels import triton_norms
from tests.kernels.compiling import check_launches


def launch_everything() -> None:
    for size in (1024, 2048, 4096, 5120, 8192):
        x = torch.empty(3, size, dtype=torch.bfloat16, device="meta")
        weight = torch.empty(size, dtype=torch.bfloat16, device="meta")
        triton_norms.rms_norm(x, weight, 1e-6)
        triton_norms.add_rms_norm(x, x, weight, 1e-6)


def test_compiles_for_every_architecture() -> None:
    compiled = check_launches(launch_everything)
    for launch in compiled:
        assert ("griddepcontrol" in launch.ptx) == (launch.arch >= 90)


def test_add_rms_norm_equals_its_twin() -> None:
    from penstock.kernels import reference_layers

    x, r, w = torch.randn(3, 70), torch.randn(3, 70), torch.randn(70)
    for a, b in zip(triton_norms.add_rms_norm(x, r, w, 1e-5), reference_layers.add_rms_norm(x, r, w, 1e-5), strict=True):
        torch.testing.assert_close(a, b)

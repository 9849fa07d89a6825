"""Compiles kernels ahead for a GPU that is not there, in a process of its own; run by test_compile_ahead."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, unused-ignore]
from triton.runtime.driver import driver  # type: ignore[import-untyped, unused-ignore]

from penstock.kernels.triton_compile import compile_ahead


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _scale_kernel(x, out, factor, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i_x, tl.load(x + i_x, mask=i_x < size) * factor, mask=i_x < size)


def scale(x: Tensor, block: int) -> Tensor:
    """x * 2 by a kernel."""
    out = torch.empty_like(x)
    _scale_kernel[(triton.cdiv(x.numel(), block),)](x, out, 2.0, x.numel(), BLOCK=block)
    return out


class _Hopper:
    """A driver without a device."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def _launch_three_kernels() -> None:
    """The same kernel for bf16 with two block sizes, and for float32 with a size that 16 does not divide."""
    x = torch.empty(1600, dtype=torch.bfloat16, device="cuda")
    y = scale(x, 128) + scale(x, 128)
    scale(y, 256)
    scale(torch.empty(999, device="cuda"), 256)


def _fail() -> None:
    raise ZeroDivisionError


def main() -> None:
    """Asserts what is to be shown."""
    cache = Path(os.environ["TRITON_CACHE_DIR"])
    driver.set_active(_Hopper())
    run = type(_scale_kernel).run
    try:
        compile_ahead([_fail], loads=False)
    except ZeroDivisionError:
        assert type(_scale_kernel).run is run, "launches are as they were"
    else:
        raise AssertionError("the call's error was lost")
    assert compile_ahead([_launch_three_kernels, _launch_three_kernels], loads=False) == 3
    assert len(list(cache.rglob("*.cubin"))) == 3
    assert compile_ahead([_launch_three_kernels], loads=False) == 3, "found again"


if __name__ == "__main__":
    main()

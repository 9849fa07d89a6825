"""Compiles kernels ahead for a GPU that is not there, in a process of its own; run by test_compile_ahead."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from penstock.kernels.triton_compile import DeviceProperties, find_kernels, pretend_device


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _scale_kernel(x, out, factor, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i_x, tl.load(x + i_x, mask=i_x < size) * factor, mask=i_x < size)


def scale(x: Tensor, block: int) -> Tensor:
    """x * 2 by a kernel."""
    out = torch.empty_like(x)
    _scale_kernel[(triton.cdiv(x.numel(), block),)](x, out, 2.0, x.numel(), BLOCK=block)
    return out


def _launch_three_kernels() -> None:
    """The same kernel for bf16 with two block sizes, and for float32 with a size that 16 does not divide."""
    x = torch.empty(1600, dtype=torch.bfloat16, device="meta")
    y = scale(x, 128) + scale(x, 128)
    scale(y, 256)
    scale(torch.empty(999, device="meta"), 256)


def _fail() -> None:
    raise ZeroDivisionError


def _view_kernel_calls() -> None:
    """The same, in tensors that begin at multiples of 16 bytes and do not."""
    rows = torch.empty(5, 100, device="meta")
    scale(rows[4], 64)
    scale(rows[1:, 1:][0], 64)


def main() -> None:
    """Asserts what is to be shown."""
    cache = Path(os.environ["TRITON_CACHE_DIR"])
    hopper = DeviceProperties(major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=227 << 10)
    pretend_device(hopper)
    assert torch.cuda.get_device_capability() == (9, 0)
    assert torch.cuda.get_device_properties(0).multi_processor_count == 132
    run = type(_scale_kernel).run
    try:
        find_kernels([_fail])
    except ZeroDivisionError:
        assert type(_scale_kernel).run is run, "launches are as they were"
    else:
        raise AssertionError("the call's error was lost")
    assert len(find_kernels([_view_kernel_calls])) == 3
    _, *found = find_kernels([_launch_three_kernels, _launch_three_kernels])  # the first is Triton's part of the driver
    assert not list(cache.rglob("*.cubin"))
    for compile_one in found:
        with contextlib.suppress(AssertionError):  # there is no driver to build a launcher for
            compile_one()
    assert len(found) == len(list(cache.rglob("*.cubin"))) == 3
    assert not torch.empty(3, device="meta").is_cuda


if __name__ == "__main__":
    main()

"""The check of compiled kernels finds what it is for."""

from __future__ import annotations

import pytest
import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from tests.kernels.compiling import check_launches, compile_launches


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _product_kernel(a, b, c, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, SIZE)
    square = i[:, None] * SIZE + i[None, :]
    tl.store(c + square, tl.dot(tl.load(a + square), tl.load(b + square)))


def launch_product(size: int, **options: int) -> None:
    halves = torch.empty(size, size, dtype=torch.float16, device="meta")
    _product_kernel[(1,)](halves, halves, halves.float(), SIZE=size, **options)


def launch_modest() -> None:
    launch_product(32)
    launch_product(32)


def launch_with_few_registers() -> None:
    launch_product(128, maxnreg=64)


def launch_with_much_shared_memory() -> None:
    launch_product(256, num_warps=8)


def test_a_kernel_launched_twice_is_compiled_once() -> None:
    (launch,) = check_launches(launch_modest, [80])
    assert launch.kernel == "_product_kernel"
    assert (launch.arch, launch.num_warps, launch.constants) == (80, 4, {"SIZE": "32"})
    assert launch.registers > 0
    assert launch.shared_bytes > 0
    assert ".entry" in launch.ptx


def test_spills_are_found() -> None:
    assert compile_launches(launch_with_few_registers, [80])[0].spilled_bytes > 0
    with pytest.raises(AssertionError, match="bytes spilled"):
        check_launches(launch_with_few_registers, [80])


def test_shared_memory_beyond_a_block_is_found() -> None:
    with pytest.raises(AssertionError, match="shared memory"):
        check_launches(launch_with_much_shared_memory, [89])

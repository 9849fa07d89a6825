"""Weights are fetched into the L2 cache while the kernel before still drains.

A prefetch returns no values, so it needs no order with anything; the rules of `triton_launch` hold for all else.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

SECTOR_BYTES = tl.constexpr(32)
"""What one prefetch is sure to bring in."""


def prefetchable(wanted: int, available: int) -> int:
    """How many elements of a row start_early may be told to fetch: a power of two, or none."""
    return 1 << min(wanted, available).bit_length() >> 1


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def start_early(  # type: ignore[no-untyped-def]
    weight, first_row, num_rows, row_stride, ROWS: tl.constexpr, ELEMENTS: tl.constexpr, GATED: tl.constexpr
):
    """Lets the next kernel start, asks for the first ELEMENTS of ROWS rows of the weights, then waits for the kernels before.

    With GATED for those of the rows num_rows further on as well. Rows past num_rows are replaced by the last. The next kernel
    may start at once: it too waits before it touches anything but constants.
    """
    tl.extra.cuda.gdc_launch_dependents()
    SECTOR: tl.constexpr = SECTOR_BYTES * 8 // weight.dtype.element_ty.primitive_bitwidth
    if ELEMENTS >= SECTOR:
        i_row = tl.minimum(first_row + tl.arange(0, ROWS), num_rows - 1).to(tl.int64)[:, None]
        i_sector = tl.arange(0, ELEMENTS // SECTOR)[None, :]
        b_sectors = weight + i_row * row_stride + i_sector * SECTOR
        _prefetch(b_sectors)
        if GATED:
            _prefetch(b_sectors + num_rows.to(tl.int64) * row_stride)
    tl.extra.cuda.gdc_wait()


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _prefetch(b_pointers):  # type: ignore[no-untyped-def]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [b_pointers.to(tl.uint64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )

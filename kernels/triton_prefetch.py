"""The beginning of a kernel of products: weights are fetched into the L2 cache while the kernel before still drains.

A prefetch returns no values, so it needs no order with anything; the rules of `triton_launch` hold for all else.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

ALIGNED_ELEMENTS = 8
"""16 bytes of a 16-bit type: what the start and the length of a prefetch must be multiples of."""


def prefetchable(wanted: int, available: int, row_length: int) -> int:
    """How many elements of each row start_early may be told to fetch: none where rows are not aligned to 16 bytes."""
    return min(wanted, available) if row_length % ALIGNED_ELEMENTS == 0 else 0


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def start_early(  # type: ignore[no-untyped-def]
    weight, first_row, num_rows, row_stride, ROWS: tl.constexpr, ELEMENTS: tl.constexpr, NUM_THREADS: tl.constexpr
):
    """Lets the next kernel start, asks for the first ELEMENTS of ROWS rows of the weights, then waits for the kernels before.

    Rows past num_rows are replaced by the last; ROWS is at most NUM_THREADS. The next kernel may start at once, because it too
    waits before it touches anything but constants.
    """
    tl.extra.cuda.gdc_launch_dependents()
    if ELEMENTS > 0:
        # One thread a row, neighbouring rows in different warps: a warp issues its prefetches one after the other.
        i_thread = tl.arange(0, NUM_THREADS)
        i_row = i_thread % 32 * (NUM_THREADS // 32) + i_thread // 32
        SIZE_BYTES: tl.constexpr = ELEMENTS * weight.dtype.element_ty.primitive_bitwidth // 8
        b_sizes = tl.where(i_row < ROWS, SIZE_BYTES, 0)
        i_row = tl.minimum(first_row + i_row, num_rows - 1).to(tl.int64)
        tl.inline_asm_elementwise(
            """
            {
                .reg .pred has_row;
                setp.ne.s32 has_row, $2, 0;
                @has_row cp.async.bulk.prefetch.L2.global [$1], $2;
                mov.u32 $0, 0;
            }
            """,
            "=r,l,r",
            [(weight + i_row * row_stride).to(tl.uint64), b_sizes],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    tl.extra.cuda.gdc_wait()

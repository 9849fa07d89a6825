"""Triton's own Philox in a kernel of a few lines, to compare ours with."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _philox_kernel(words, seed, position, num_quads, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i_quad = tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.int32)
    b_words = tl.philox(seed, i_quad, zero + position, zero, zero)
    for i_word in tl.static_range(4):
        tl.store(words + 4 * i_quad + i_word, b_words[i_word].to(tl.int64), mask=i_quad < num_quads)


def triton_words(seed: int, position: int, num_quads: int) -> Tensor:
    """The words of counters (0 .. num_quads - 1, position, 0, 0), four by four."""
    words = torch.empty(4 * num_quads, dtype=torch.int64, device="cuda")
    _philox_kernel[(1,)](words, seed, position, num_quads, BLOCK=triton.next_power_of_2(num_quads))
    return words

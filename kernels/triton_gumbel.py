"""Gumbel noise inside a kernel: Philox words of (token id // 4, position) under a request's seed, as in ops.gumbel_noise."""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def exponential_noise(b_words):  # type: ignore[no-untyped-def]
    """-log1p(-u) for the uniform u of each 32-bit word, to about 1e-6 of its value; u is never 0 and never 1."""
    b_u = tl.minimum((b_words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    # The likeliest winners have a small u, for which 1 - u has lost its digits: there the series u + u^2 / 2 + u^3 / 3 ...
    b_series = 1.0 / 7 + b_u * (1.0 / 8)
    b_series = 1.0 / 6 + b_u * b_series
    b_series = 1.0 / 5 + b_u * b_series
    b_series = 1.0 / 4 + b_u * b_series
    b_series = 1.0 / 3 + b_u * b_series
    b_series = 1.0 / 2 + b_u * b_series
    b_series = b_u * (1.0 + b_u * b_series)
    return tl.where(b_u < 0.125, b_series, -tl.log(1.0 - b_u))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def gumbel_noise_of_quads(seed, position, i_quad):  # type: ignore[no-untyped-def]
    """Noise float32 [QUADS, 4] of the tokens 4 * i_quad .. 4 * i_quad + 3; i_quad int32 [QUADS]."""
    b_zero = tl.zeros_like(i_quad)
    b_words = tl.philox(seed, i_quad, b_zero + position, b_zero, b_zero)
    # join(a, b)[..., i] is a for i = 0 and b for i = 1; so this holds word 2 * i + j at [quad, i, j].
    b_joined = tl.join(tl.join(b_words[0], b_words[2]), tl.join(b_words[1], b_words[3]))
    return -tl.log(exponential_noise(tl.reshape(b_joined, (i_quad.shape[0], 4))))

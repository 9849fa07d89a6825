"""Gumbel noise inside a kernel: Philox words of (token id // 4, position) under a request's seed, as in ops.gumbel_noise.

Words equal the twin's bit by bit, noise to about 1e-6: a token differs from the twin's only where two scores are as close.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def gumbel_noise_of_quads(seed, position, i_quad, HAS_PTX: tl.constexpr):  # type: ignore[no-untyped-def]
    """Noise float32 [QUADS, 4] of the tokens 4 * i_quad .. 4 * i_quad + 3; i_quad int32 [QUADS]."""
    w0, w1, w2, w3 = _philox(seed, position, i_quad)
    # join(a, b)[..., i] is a for i = 0 and b for i = 1; so this holds word 2 * i + j at [quad, i, j].
    b_words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (i_quad.shape[0], 4))
    b_u = tl.minimum((b_words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    return -_log(_minus_log1p_of_minus(b_u, HAS_PTX), HAS_PTX)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _philox(seed, position, i_quad):  # type: ignore[no-untyped-def]
    """Philox4x32-10 (see reference_sampling.philox) of the counters (i_quad, position, 0, 0).

    With both halves of a product from one 64-bit multiplication; `tl.philox` takes two.
    """
    c0, c2 = i_quad.to(tl.uint32), tl.zeros_like(i_quad).to(tl.uint32)
    c1, c3 = c2 + position.to(tl.uint32), c2
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product_a, product_b = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product_b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product_a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = product_b.to(tl.uint32), product_a.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _minus_log1p_of_minus(b_u, HAS_PTX: tl.constexpr):  # type: ignore[no-untyped-def]
    """-log(1 - u), 0 < u < 1, to about 1e-6 of its value."""
    # The likeliest winners have a small u, for which 1 - u has lost its digits: there the series u + u^2 / 2 + u^3 / 3 ...
    b_series = 1.0 / 7 + b_u * (1.0 / 8)
    b_series = 1.0 / 6 + b_u * b_series
    b_series = 1.0 / 5 + b_u * b_series
    b_series = 1.0 / 4 + b_u * b_series
    b_series = 1.0 / 3 + b_u * b_series
    b_series = 1.0 / 2 + b_u * b_series
    b_series = b_u * (1.0 + b_u * b_series)
    return tl.where(b_u < 0.125, b_series, -_log(1.0 - b_u, HAS_PTX))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _log(b_x, HAS_PTX: tl.constexpr):  # type: ignore[no-untyped-def]
    """Natural logarithm of normal numbers, to 1e-7 or 2**-22 of its value; the compiler's own takes five times as long."""
    if not HAS_PTX:
        return tl.log(b_x)
    b_log2 = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [b_x], dtype=tl.float32, is_pure=True, pack=1)
    return b_log2 * 0.6931471805599453

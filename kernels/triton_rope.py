"""Head norms, rotation and the write into the paged KV cache in one pass: a program per token and group of heads.

Reads q, k and v where the fused projection left them. A head's result depends on nothing but the head.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .triton_launch import has_pdl

HEADS_PER_PROGRAM = 8
ELEMENTS_PER_THREAD = 8
"""Of each half of a head: one 16-byte access in the 2-byte types."""


def rope_and_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_slots: Tensor,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    eps: float,
) -> Tensor:
    """See ops.rope_and_cache. Tokens may lie any distance apart, the heads of one lie side by side."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k.shape[1], k_cache.shape[2]
    assert all(x.stride()[1:] == (head_dim, 1) for x in (q, k, v))
    assert k_cache.stride() == v_cache.stride()
    assert k_cache.stride()[2:] == (head_dim, 1)
    assert cos_sin.is_contiguous()
    rotated = q.new_empty(num_tokens, num_heads, head_dim)
    if num_tokens == 0:
        return rotated
    q_groups, kv_groups = (triton.cdiv(count, HEADS_PER_PROGRAM) for count in (num_heads, num_kv_heads))
    block_half = triton.next_power_of_2(head_dim // 2)
    pdl = has_pdl(q)
    _rope_and_cache_kernel[(num_tokens * (q_groups + 2 * kv_groups),)](
        q,
        k,
        v,
        positions,
        cos_sin,
        k_cache,
        v_cache,
        kv_slots,
        q_norm_weight,
        k_norm_weight,
        rotated,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=head_dim // 2,
        BLOCK_SIZE=block_size,
        BLOCK_HEADS=HEADS_PER_PROGRAM,
        BLOCK_HALF=block_half,
        PDL=pdl,
        num_warps=max(HEADS_PER_PROGRAM * block_half // (32 * ELEMENTS_PER_THREAD), 1),
        launch_pdl=pdl,
    )
    return rotated


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _rope_and_cache_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    positions,
    cos_sin,
    k_cache,
    v_cache,
    kv_slots,
    q_norm_weight,  # None: no norm
    k_norm_weight,
    rotated,
    q_token_stride,
    k_token_stride,
    v_token_stride,
    cache_block_stride,
    cache_head_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    q_groups: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    kv_groups: tl.constexpr = (NUM_KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    i_token = (tl.program_id(0) // (q_groups + 2 * kv_groups)).to(tl.int64)
    i_group = tl.program_id(0) % (q_groups + 2 * kv_groups)
    # Cosines, sines and weights are loaded once per head, from cache: no exchange between threads, so no barrier.
    i_half = tl.broadcast_to(tl.arange(0, BLOCK_HALF)[None, :], (BLOCK_HEADS, BLOCK_HALF))
    in_half = i_half < HALF

    # The step's own tensors are complete before the embedding (see triton_launch): read ahead of the projection's end.
    slot = tl.load(kv_slots + i_token)
    position = tl.load(positions + i_token)
    position = tl.where(slot >= 0, position, 0)  # padding's may be anything
    angles = cos_sin + position * (2 * HALF) + i_half
    b_cos = tl.load(angles, mask=in_half, other=0.0)
    b_sin = tl.load(angles + HALF, mask=in_half, other=0.0)
    cache_offset = (slot // BLOCK_SIZE) * cache_block_stride + (slot % BLOCK_SIZE) * (2 * HALF)
    if PDL:
        tl.extra.cuda.gdc_wait()

    if i_group < q_groups:
        i_head = i_group * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
        inside = (i_head < NUM_HEADS) & in_half
        heads = q + i_token * q_token_stride + i_head * (2 * HALF)
        b_q = _rotated(heads, q_norm_weight, b_cos, b_sin, inside, i_half, eps, HALF)
        _store_halves(rotated + (i_token * NUM_HEADS + i_head) * (2 * HALF) + i_half, b_q, inside, HALF)
    elif i_group < q_groups + kv_groups:
        i_kv_head = (i_group - q_groups) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
        in_kv = (i_kv_head < NUM_KV_HEADS) & in_half
        k_heads = k + i_token * k_token_stride + i_kv_head * (2 * HALF)
        b_k = _rotated(k_heads, k_norm_weight, b_cos, b_sin, in_kv, i_half, eps, HALF)
        _store_halves(k_cache + cache_offset + i_kv_head * cache_head_stride + i_half, b_k, in_kv & (slot >= 0), HALF)
    else:
        i_v_head = (i_group - q_groups - kv_groups) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
        in_v = (i_v_head < NUM_KV_HEADS) & in_half
        b_v = _load_halves(v + i_token * v_token_stride + i_v_head * (2 * HALF) + i_half, in_v, HALF)
        _store_halves(v_cache + cache_offset + i_v_head * cache_head_stride + i_half, b_v, in_v & (slot >= 0), HALF)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _load_halves(first, inside, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(first, mask=inside, other=0.0), tl.load(first + HALF, mask=inside, other=0.0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _store_halves(first, b_halves, inside, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(first, b_halves[0].to(first.dtype.element_ty), mask=inside)
    tl.store(first + HALF, b_halves[1].to(first.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _rotated(heads, norm_weight, b_cos, b_sin, inside, i_half, eps, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Both halves of the heads, normed where norm_weight is not None and rotated, in float32."""
    dtype: tl.constexpr = heads.dtype.element_ty
    b_first, b_second = _load_halves(heads + i_half, inside, HALF)
    b_first, b_second = b_first.to(tl.float32), b_second.to(tl.float32)
    if norm_weight is not None:
        scale = tl.rsqrt(tl.sum(b_first * b_first + b_second * b_second, 1)[:, None] / (2 * HALF) + eps)
        b_weights = _load_halves(norm_weight + i_half, i_half < HALF, HALF)
        # Rounded before the weight and after it, as the models' own code does.
        b_first = ((b_first * scale).to(dtype).to(tl.float32) * b_weights[0].to(tl.float32)).to(dtype).to(tl.float32)
        b_second = ((b_second * scale).to(dtype).to(tl.float32) * b_weights[1].to(tl.float32)).to(dtype).to(tl.float32)
    return b_first * b_cos - b_second * b_sin, b_second * b_cos + b_first * b_sin

"""The inner part of paged attention along the keys: one tile of queries against a stretch of one head's keys and values.

The softmax is computed online (arXiv 1805.02867). Loads run ahead of the arithmetic by as many tiles as the launch has stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a launch is laid out; of no influence on what is computed, up to rounding."""

    tile_bytes: int
    """Of the keys read at a time, and as many of values."""
    num_warps: int
    num_stages: int
    programs_per_multiprocessor: int
    eviction_policy: str = ""


def padded_dims(head_dim: int) -> int:
    """Columns of a tile that takes head_dim."""
    return max(16, 1 << (head_dim - 1).bit_length())


def tile_keys(k_cache: Tensor, dims: int, tuning: Tuning) -> int:
    """Keys of `dims` numbers that are read at a time."""
    return max(16, tuning.tile_bytes // (dims * k_cache.element_size()))


def grid_size(q: Tensor, tuning: Tuning) -> int:
    """Programs that run at once."""
    return _num_multiprocessors(q.device) * tuning.programs_per_multiprocessor


def _num_multiprocessors(device: torch.device) -> int:
    """A device that is not there (the interpreter's) counts as a small one."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def load_blocks(table, first_key, end_key, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The block of each of the KEYS keys from first_key on, as far as they are below end_key."""
    b_keys = first_key + tl.arange(0, KEYS)
    return tl.load(table + b_keys // BLOCK_SIZE, mask=b_keys < end_key, other=0)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def attend_keys(  # type: ignore[no-untyped-def]
    b_q,
    b_positions,
    k_cache,
    v_cache,
    table,
    b_blocks,
    i_head,
    num_kv_heads,
    first_key,
    end_key,
    scale,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """Attention of queries [M, D] at positions [M] to keys first_key .. end_key - 1 of one head; b_blocks: of the first KEYS.

    Returns the weighted mean of the values, float32 [M, D], and the base-2 logarithm of the sum of weights, [M]: minus infinity
    where nothing is visible. `scale` is that of scores in powers of two.
    """
    i_key, i_dim = tl.arange(0, KEYS), tl.arange(0, DIMS)
    b_top = tl.full((b_q.shape[0],), float("-inf"), tl.float32)
    b_sum = tl.zeros((b_q.shape[0],), tl.float32)
    b_out = tl.zeros((b_q.shape[0], DIMS), tl.float32)
    for first in range(first_key, end_key, KEYS):
        b_keys = first + i_key
        exists = b_keys < end_key
        b_places = (b_blocks.to(tl.int64) * num_kv_heads + i_head) * BLOCK_SIZE + b_keys % BLOCK_SIZE
        b_offsets = b_places[:, None] * HEAD_DIM + i_dim[None, :]
        if DIMS == HEAD_DIM:
            readable = tl.broadcast_to(exists[:, None], (KEYS, DIMS))
        else:
            readable = exists[:, None] & (i_dim < HEAD_DIM)[None, :]
        # The blocks of the next keys are looked up while these are computed: addresses are there when loads are due.
        b_blocks = load_blocks(table, first + KEYS, end_key, BLOCK_SIZE, KEYS)
        b_k = tl.load(k_cache + b_offsets, mask=readable, other=0.0, eviction_policy=EVICTION)
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3") * scale
        visible = tl.broadcast_to(exists[None, :], b_scores.shape)
        if CAUSAL:
            visible &= b_keys[None, :] <= b_positions[:, None]
        if WINDOW > 0:
            visible &= b_keys[None, :] > b_positions[:, None] - WINDOW
        b_scores = tl.where(visible, b_scores, float("-inf"))
        b_new_top = tl.maximum(b_top, tl.max(b_scores, 1))
        # Where nothing was visible so far the maximum is no number to subtract.
        b_base = tl.where(b_new_top == float("-inf"), 0.0, b_new_top)
        b_weights = tl.exp2(b_scores - b_base[:, None])
        b_shrink = tl.exp2(b_top - b_base)
        b_sum = b_sum * b_shrink + tl.sum(b_weights, 1)
        b_v = tl.load(v_cache + b_offsets, mask=readable, other=0.0, eviction_policy=EVICTION)
        b_out = b_out * b_shrink[:, None]
        b_out = tl.dot(b_weights.to(b_v.dtype), b_v, b_out, input_precision="tf32x3")
        b_top = b_new_top
    # Without anything visible: zeros, and a logarithm that b_top makes minus infinity.
    b_sum = tl.where(b_sum > 0.0, b_sum, 1.0)
    return b_out / b_sum[:, None], b_top + tl.log2(b_sum)

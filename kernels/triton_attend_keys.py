"""The inner part of paged attention along the keys: one tile of queries against a tile of one head's keys and values.

The softmax is computed online (arXiv 1805.02867). Loops over tiles load ahead of the arithmetic, by one tile less than the
launch has stages; the blocks of a tile are looked up one tile before that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

_REGISTERS = 64 * 1024
"""Of a multiprocessor."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a launch is laid out; of no influence on what is computed, up to rounding."""

    tile_bytes: int
    """Of the keys read at a time, and as many of values."""
    num_warps: int
    num_stages: int
    programs_per_multiprocessor: int


def padded_dims(head_dim: int) -> int:
    """Columns of a tile that takes head_dim."""
    return max(16, 1 << (head_dim - 1).bit_length())


def tile_keys(k_cache: Tensor, dims: int, tuning: Tuning) -> int:
    """Keys of `dims` numbers that are read at a time."""
    return max(16, tuning.tile_bytes // (dims * k_cache.element_size()))


def grid_size(q: Tensor, tuning: Tuning) -> int:
    """Programs that run at once."""
    return _num_multiprocessors(q.device) * tuning.programs_per_multiprocessor


def max_registers(tuning: Tuning) -> int:
    """Of a thread, so that as many programs as asked for fit a multiprocessor."""
    return min(255, _REGISTERS // (32 * tuning.num_warps * tuning.programs_per_multiprocessor) // 8 * 8)


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
def key_offsets(  # type: ignore[no-untyped-def]
    b_blocks,
    b_keys,
    end_key,
    i_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Where keys lie in a cache, and which of their numbers may be read: int64 and bool [KEYS, DIMS]."""
    i_dim = tl.arange(0, DIMS)
    b_places = (b_blocks * NUM_KV_HEADS + i_head) * BLOCK_SIZE + b_keys % BLOCK_SIZE
    exists = (b_keys < end_key)[:, None]
    readable = tl.broadcast_to(exists, (b_keys.shape[0], DIMS)) if DIMS == HEAD_DIM else exists & (i_dim < HEAD_DIM)[None, :]
    return b_places.to(tl.int64)[:, None] * HEAD_DIM + i_dim[None, :], readable


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def attend_tile(b_q, b_k, b_v, visible, scale, b_top, b_sum, b_out):  # type: ignore[no-untyped-def]
    """Adds keys and values [KEYS, D] to the running (maximum, sum of weights [M], weighted sum [M, D]) of queries [M, D].

    `scale` is that of scores in powers of two; `visible` [M, KEYS] says who sees what.
    """
    b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3") * scale
    b_scores = tl.where(visible, b_scores, float("-inf"))
    b_new_top = tl.maximum(b_top, tl.max(b_scores, 1))
    # Where nothing was visible so far the maximum is no number to subtract.
    b_base = tl.where(b_new_top == float("-inf"), 0.0, b_new_top)
    b_weights = tl.exp2(b_scores - b_base[:, None])
    b_shrink = tl.exp2(b_top - b_base)
    b_sum = b_sum * b_shrink + tl.sum(b_weights, 1)
    b_out = tl.dot(b_weights.to(b_v.dtype), b_v, b_out * b_shrink[:, None], input_precision="tf32x3")
    return b_new_top, b_sum, b_out


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def weighted_mean(b_top, b_sum, b_out):  # type: ignore[no-untyped-def]
    """The weighted mean of the values, [M, D], and the base-2 logarithm of the sum of weights, [M].

    Where nothing is visible they are zeros and minus infinity.
    """
    b_sum = tl.where(b_sum > 0.0, b_sum, 1.0)
    return b_out / b_sum[:, None], b_top + tl.log2(b_sum)

"""A token per row of logits: argmax for greedy rows, Gumbel-max for the others, in one launch and a small reduction.

Stage one reads each logit once, a program per (row, tile of the vocabulary), so that one row spreads over the card and many
rows stream at its bandwidth. A maximum is the same in any order: a row's token depends on nothing but the row.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .triton_gumbel import gumbel_noise_of_quads
from .triton_launch import has_pdl

TILE_SIZE = 4096
NUM_WARPS = 8


def sample_tokens(
    logits: Tensor, row_slots: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor, thresholds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ops.sample_tokens."""
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    is_valid = torch.empty(num_rows, dtype=torch.bool, device=logits.device)
    if num_rows == 0:
        return token_ids, is_valid
    num_tiles, pdl = triton.cdiv(vocab_size, TILE_SIZE), has_pdl(logits)
    best_values = torch.empty(num_rows, num_tiles, dtype=torch.float32, device=logits.device)
    best_ids = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=logits.device)
    _best_of_tile_kernel[(num_tiles, num_rows)](
        logits,
        row_slots,
        temperatures,
        seeds,
        positions,
        thresholds,
        best_values,
        best_ids,
        logits.stride(0),
        VOCAB_SIZE=vocab_size,
        NUM_TILES=num_tiles,
        TILE=TILE_SIZE,
        HAS_PTX=not logits.is_cpu,
        PDL=pdl,
        num_warps=NUM_WARPS,
        launch_pdl=pdl,
    )
    _best_of_row_kernel[(num_rows,)](
        best_values,
        best_ids,
        token_ids,
        is_valid,
        NUM_TILES=num_tiles,
        BLOCK=triton.next_power_of_2(num_tiles),
        PDL=pdl,
        num_warps=1,
        launch_pdl=pdl,
    )
    return token_ids, is_valid


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _best_of_tile_kernel(  # type: ignore[no-untyped-def]
    logits,
    row_slots,
    temperatures,
    seeds,
    positions,
    thresholds,  # None: nothing is filtered
    best_values,
    best_ids,
    row_stride,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
    HAS_PTX: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_tile = tl.program_id(0)
    i_row = tl.program_id(1).to(tl.int64)
    i_quad = i_tile * (TILE // 4) + tl.arange(0, TILE // 4)
    i_token = i_quad[:, None] * 4 + tl.arange(0, 4)[None, :]
    b_logits = tl.load(logits + i_row * row_stride + i_token, mask=i_token < VOCAB_SIZE, other=-float("inf")).to(tl.float32)
    # NaN would lose every comparison; as infinity it wins, and the row is known to be void.
    b_scores = tl.where(b_logits != b_logits, float("inf"), b_logits)
    i_slot = tl.load(row_slots + i_row).to(tl.int64)
    # All of them before any is needed: one after the other, their latencies would be most of a lone row's time.
    temperature = tl.load(temperatures + i_slot)
    seed = tl.load(seeds + i_slot)
    position = tl.load(positions + i_slot)
    threshold = -float("inf")
    if thresholds is not None:
        threshold = tl.load(thresholds + i_row)
    if temperature > 0:
        # Few tiles hold a token that the filters keep; the others need no noise.
        if tl.max(tl.max(b_scores, 1), 0) >= threshold:
            b_noisy = b_scores * (1.0 / temperature) + gumbel_noise_of_quads(seed, position, i_quad, HAS_PTX)
            b_scores = tl.where(b_scores >= threshold, b_noisy, -float("inf"))
        else:
            b_scores = tl.full((TILE // 4, 4), -float("inf"), tl.float32)
    best = tl.max(tl.max(b_scores, 1), 0)
    b_ids = tl.where(b_scores == best, i_token, VOCAB_SIZE)
    tl.store(best_values + i_row * NUM_TILES + i_tile, best)
    tl.store(best_ids + i_row * NUM_TILES + i_tile, tl.min(tl.min(b_ids, 1), 0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _best_of_row_kernel(  # type: ignore[no-untyped-def]
    best_values,
    best_ids,
    token_ids,
    is_valid,
    NUM_TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i_row = tl.program_id(0).to(tl.int64)
    i_tile = tl.arange(0, BLOCK)
    inside = i_tile < NUM_TILES
    b_values = tl.load(best_values + i_row * NUM_TILES + i_tile, mask=inside, other=-float("inf"))
    b_ids = tl.load(best_ids + i_row * NUM_TILES + i_tile, mask=inside, other=2147483647)
    best = tl.max(b_values, 0)
    tl.store(token_ids + i_row, tl.min(tl.where(b_values == best, b_ids, 2147483647), 0).to(tl.int64))
    tl.store(is_valid + i_row, (best > -float("inf")) & (best < float("inf")))

"""Triton kernels that set a step up from what the device keeps, and write down what it sampled."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from .step_state import (
    FROM_DEVICE,
    INVALID_TOKEN,
    NO_TOKEN,
    NUM_OUTPUT_STEPS,
    SlotState,
    StepTensors,
)

MAX_TOKEN_BLOCK = 256
ROW_BLOCK = 256


@triton.jit(do_not_specialize=["num_tokens", "num_rows"])  # type: ignore[untyped-decorator, unused-ignore]
def _prepare_kernel(
    row_slots,
    query_start,
    row_starts,
    row_samples,
    num_computed,
    last_token,
    output_positions,
    block_tables,
    token_ids,
    positions,
    kv_slots,
    context_lens,
    last_tokens,
    num_steps,
    group_stride,
    table_stride,
    kv_stride,
    spare_slot,
    num_tokens,
    num_rows,
    NUM_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FROM_DEVICE: tl.constexpr,
    NO_TOKEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per row and stretch of BLOCK of its tokens; the last "row" is the padding behind all of them.
    i_row, i_stretch = tl.program_id(0), tl.program_id(1)
    first = tl.load(query_start + i_row)
    if i_row == num_rows:
        i_token = first + i_stretch * BLOCK + tl.arange(0, BLOCK)
        is_padding = i_token < num_tokens
        b_zero = tl.zeros((BLOCK,), tl.int64)
        tl.store(token_ids + i_token, b_zero, mask=is_padding)
        tl.store(positions + i_token, b_zero, mask=is_padding)
        for i_group in tl.static_range(NUM_GROUPS):
            tl.store(kv_slots + i_group * kv_stride + i_token, b_zero - 1, mask=is_padding)
        if i_stretch == 0:
            # Nobody else looks at the number of steps while this kernel runs.
            tl.store(num_steps, tl.load(num_steps) + 1)
    else:
        end = tl.load(query_start + i_row + 1)
        slot = tl.load(row_slots + i_row)
        start = tl.load(row_starts + i_row)
        is_decode = start == FROM_DEVICE
        if is_decode:
            start = tl.load(num_computed + slot)
        if i_stretch == 0:
            tl.store(context_lens + i_row, tl.where(slot == spare_slot, 0, start + end - first))
            tl.store(last_tokens + i_row, tl.maximum(end - 1, 0).to(tl.int64))
            position = tl.load(row_samples + i_row)
            tl.store(output_positions + slot, position, mask=(not is_decode) & (position != NO_TOKEN))
        i_token = i_stretch * BLOCK + tl.arange(0, BLOCK)
        is_own = i_token < end - first
        b_positions = start + i_token
        i_token += first
        tl.store(positions + i_token, b_positions.to(tl.int64), mask=is_own)
        if is_decode:
            b_tokens = tl.zeros((BLOCK,), tl.int64) + tl.load(last_token + slot)
            tl.store(token_ids + i_token, b_tokens, mask=is_own)
        b_columns = b_positions // BLOCK_SIZE
        for i_group in tl.static_range(NUM_GROUPS):
            table = block_tables + i_group * group_stride + slot.to(tl.int64) * table_stride
            b_blocks = tl.load(table + b_columns, mask=is_own, other=0).to(tl.int64)
            b_kv_slots = b_blocks * BLOCK_SIZE + b_positions % BLOCK_SIZE
            tl.store(kv_slots + i_group * kv_stride + i_token, b_kv_slots, mask=is_own)


def prepare_step(state: SlotState, step: StepTensors, num_tokens: int, num_rows: int, block_size: int) -> None:
    """See ops.prepare_step."""
    # With as many tokens as rows every row has one at most, and the padding is spread over programs of 32.
    block = 32 if num_tokens == num_rows else MAX_TOKEN_BLOCK
    _prepare_kernel[(num_rows + 1, triton.cdiv(num_tokens, block))](
        step.row_slots,
        step.query_start,
        step.row_starts,
        step.row_samples,
        state.num_computed,
        state.last_token,
        state.output_positions,
        state.block_tables,
        step.token_ids,
        step.positions,
        step.kv_slots,
        step.context_lens,
        step.last_tokens,
        step.num_steps,
        state.block_tables.stride(0),
        state.block_tables.stride(1),
        step.kv_slots.stride(0),
        state.spare_slot,
        num_tokens,
        num_rows,
        NUM_GROUPS=state.block_tables.shape[0],
        BLOCK_SIZE=block_size,
        FROM_DEVICE=FROM_DEVICE,
        NO_TOKEN=NO_TOKEN,
        BLOCK=block,
        num_warps=1 if block == 32 else 4,
    )


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator, unused-ignore]
def _advance_kernel(
    row_slots,
    row_starts,
    row_samples,
    context_lens,
    sampled_ids,
    is_valid,
    num_computed,
    last_token,
    output_positions,
    shown,
    num_steps,
    shown_stride,
    spare_slot,
    num_rows,
    FROM_DEVICE: tl.constexpr,
    NO_TOKEN: tl.constexpr,
    INVALID_TOKEN: tl.constexpr,
    NUM_OUTPUT_STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = i_row < num_rows
    b_slots = tl.load(row_slots + i_row, mask=is_row, other=0)
    is_real = is_row & (b_slots != spare_slot)
    is_decode = tl.load(row_starts + i_row, mask=is_row, other=0) == FROM_DEVICE
    samples = is_real & (is_decode | (tl.load(row_samples + i_row, mask=is_row, other=0) != NO_TOKEN))
    valid = tl.load(is_valid + i_row, mask=is_row, other=0) != 0
    b_tokens = tl.where(valid, tl.load(sampled_ids + i_row, mask=is_row, other=0).to(tl.int32), 0)
    tl.store(num_computed + b_slots, tl.load(context_lens + i_row, mask=is_row, other=0), mask=is_real)
    tl.store(last_token + b_slots, b_tokens, mask=samples)
    b_positions = tl.load(output_positions + b_slots, mask=samples, other=0)
    tl.store(output_positions + b_slots, b_positions + 1, mask=samples)
    b_shown = tl.where(samples, tl.where(valid, b_tokens, INVALID_TOKEN), NO_TOKEN)
    place = (tl.load(num_steps) - 1) % NUM_OUTPUT_STEPS
    tl.store(shown + place * shown_stride + i_row, b_shown, mask=is_row)


def advance_step(state: SlotState, step: StepTensors, token_ids: Tensor, is_valid: Tensor) -> None:
    """See ops.advance_step."""
    num_rows = token_ids.shape[0]
    _advance_kernel[(triton.cdiv(num_rows, ROW_BLOCK),)](
        step.row_slots,
        step.row_starts,
        step.row_samples,
        step.context_lens,
        token_ids,
        is_valid,
        state.num_computed,
        state.last_token,
        state.output_positions,
        step.sampled,
        step.num_steps,
        step.sampled.stride(0),
        state.spare_slot,
        num_rows,
        FROM_DEVICE=FROM_DEVICE,
        NO_TOKEN=NO_TOKEN,
        INVALID_TOKEN=INVALID_TOKEN,
        NUM_OUTPUT_STEPS=NUM_OUTPUT_STEPS,
        BLOCK=ROW_BLOCK,
        num_warps=4,
    )

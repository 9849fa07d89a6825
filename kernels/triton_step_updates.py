"""Triton kernel that takes over what the host sends before a step."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

from .step_state import PARAMETER_NAMES, STARTED_WORDS, SlotState, StepTensors, StepUpdates

UPDATE_BLOCK = 256


@triton.jit(do_not_specialize=["num_blocks", "num_started", "num_rows", "num_token_ids", "first_token"])  # type: ignore[untyped-decorator, unused-ignore]
def _apply_updates_kernel(
    words,
    block_tables,
    parameters,
    top_k,
    seeds,
    row_slots,
    query_start,
    row_starts,
    row_samples,
    token_ids,
    parameter_stride,
    num_blocks,
    num_started,
    num_rows,
    num_token_ids,
    first_token,
    NUM_PARAMETERS: tl.constexpr,
    STARTED_WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Every program takes element i of every section; sections that are shorter are masked off.
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_block = i < num_blocks
    b_places = tl.load(words + i, mask=is_block, other=0)
    b_ids = tl.load(words + num_blocks + i, mask=is_block, other=0)
    tl.store(block_tables + b_places, b_ids, mask=is_block)

    records = words + 2 * num_blocks
    is_started = i < num_started
    record = records + i * STARTED_WORDS
    b_slots = tl.load(record, mask=is_started, other=0)
    for i_parameter in tl.static_range(NUM_PARAMETERS):
        b_bits = tl.load(record + 1 + i_parameter, mask=is_started, other=0)
        target = parameters + i_parameter * parameter_stride + b_slots
        tl.store(target, b_bits.to(tl.float32, bitcast=True), mask=is_started)
    tl.store(top_k + b_slots, tl.load(record + 1 + NUM_PARAMETERS, mask=is_started, other=0), mask=is_started)
    b_low = tl.load(record + 2 + NUM_PARAMETERS, mask=is_started, other=0).to(tl.int64) & 0xFFFFFFFF
    b_high = tl.load(record + 3 + NUM_PARAMETERS, mask=is_started, other=0).to(tl.int64)
    tl.store(seeds + b_slots, (b_high << 32) | b_low, mask=is_started)

    rows = records + num_started * STARTED_WORDS
    is_row = i < num_rows
    is_bound = (i <= num_rows) & (num_rows > 0)
    tl.store(row_slots + i, tl.load(rows + i, mask=is_row, other=0), mask=is_row)
    tl.store(query_start + i, tl.load(rows + num_rows + i, mask=is_bound, other=0), mask=is_bound)
    tl.store(row_starts + i, tl.load(rows + 2 * num_rows + 1 + i, mask=is_row, other=0), mask=is_row)
    tl.store(row_samples + i, tl.load(rows + 3 * num_rows + 1 + i, mask=is_row, other=0), mask=is_row)

    given = rows + 4 * num_rows + tl.where(num_rows > 0, 1, 0)
    is_token = i < num_token_ids
    b_tokens = tl.load(given + i, mask=is_token, other=0).to(tl.int64)
    tl.store(token_ids + first_token + i, b_tokens, mask=is_token)


def apply_step_updates(state: SlotState, step: StepTensors, updates: StepUpdates) -> None:
    """See ops.apply_step_updates."""
    num_rows = updates.num_rows + 1 if updates.num_rows else 0
    longest = max(updates.num_blocks, updates.num_started, num_rows, updates.num_token_ids)
    _apply_updates_kernel[(triton.cdiv(longest, UPDATE_BLOCK),)](
        updates.words,
        state.block_tables,
        state.parameters,
        state.top_k,
        state.seeds,
        step.row_slots,
        step.query_start,
        step.row_starts,
        step.row_samples,
        step.token_ids,
        state.parameters.stride(0),
        updates.num_blocks,
        updates.num_started,
        updates.num_rows,
        updates.num_token_ids,
        updates.first_token,
        NUM_PARAMETERS=len(PARAMETER_NAMES),
        STARTED_WORDS=STARTED_WORDS,
        BLOCK=UPDATE_BLOCK,
        num_warps=4,
    )

"""Plain-PyTorch twins of the kernels that set a step up and finish it. Nothing here waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from .step_state import (
    FROM_DEVICE,
    INVALID_TOKEN,
    NO_TOKEN,
    NUM_OUTPUT_STEPS,
    PARAMETER_NAMES,
    STARTED_WORDS,
    SlotState,
    StepTensors,
    StepUpdates,
)


def apply_step_updates(state: SlotState, step: StepTensors, updates: StepUpdates) -> None:
    """See ops.apply_step_updates."""
    num_rows = updates.num_rows
    sizes = [updates.num_blocks, updates.num_blocks, updates.num_started * STARTED_WORDS]
    sizes += [num_rows, num_rows + 1, num_rows, num_rows] if num_rows else [0, 0, 0, 0]
    places, block_ids, started, *rows, token_ids = torch.split(updates.words, [*sizes, updates.num_token_ids])
    if updates.num_blocks:
        state.block_tables.view(-1).index_copy_(0, places.long(), block_ids)
    if updates.num_started:
        _start(state, started.view(updates.num_started, STARTED_WORDS))
    if num_rows:
        for target, words in zip((step.row_slots, step.query_start, step.row_starts, step.row_samples), rows, strict=True):
            target[: len(words)] = words
    if updates.num_token_ids:
        step.token_ids[updates.first_token : updates.first_token + updates.num_token_ids] = token_ids


def _start(state: SlotState, records: Tensor) -> None:
    slots = records[:, 0].long()
    num_parameters = len(PARAMETER_NAMES)
    parameters = records[:, 1 : 1 + num_parameters].contiguous().view(torch.float32)
    state.parameters.index_copy_(1, slots, parameters.t())
    state.top_k.index_copy_(0, slots, records[:, 1 + num_parameters])
    state.seeds.index_copy_(0, slots, records[:, 2 + num_parameters :].contiguous().view(torch.int64).view(-1))


def prepare_step(state: SlotState, step: StepTensors, num_tokens: int, num_rows: int, block_size: int) -> None:
    """See ops.prepare_step."""
    slots = step.row_slots[:num_rows].long()
    first, end = step.query_start[:num_rows], step.query_start[1 : num_rows + 1]
    is_chunk = step.row_starts[:num_rows] != FROM_DEVICE
    starts = torch.where(is_chunk, step.row_starts[:num_rows], state.num_computed[slots])
    step.context_lens[:num_rows] = torch.where(slots == state.spare_slot, 0, starts + end - first)
    step.last_tokens[:num_rows] = (end - 1).clamp_min(0)
    names_position = is_chunk & (step.row_samples[:num_rows] != NO_TOKEN)
    output_positions = torch.where(names_position, step.row_samples[:num_rows], state.output_positions[slots])
    state.output_positions.index_copy_(0, slots, output_positions)
    step.num_steps.add_(1)
    tokens = torch.arange(num_tokens, dtype=torch.int32, device=slots.device)
    rows = torch.searchsorted(end, tokens, right=True)
    is_real = rows < num_rows
    rows = rows.clamp_max(num_rows - 1)
    positions = torch.where(is_real, (starts - first)[rows] + tokens, 0)
    step.positions[:num_tokens] = positions
    token_slots = slots[rows]
    given = torch.where(is_real, step.token_ids[:num_tokens], 0)
    step.token_ids[:num_tokens] = torch.where(is_chunk[rows], given, state.last_token[token_slots] * is_real)
    columns = torch.div(positions, block_size, rounding_mode="floor")
    block_ids = state.block_tables[:, token_slots, columns].long()
    step.kv_slots[:, :num_tokens] = torch.where(is_real, block_ids * block_size + (positions - columns * block_size), -1)


def advance_step(state: SlotState, step: StepTensors, token_ids: Tensor, is_valid: Tensor) -> None:
    """See ops.advance_step."""
    num_rows = len(token_ids)
    slots = step.row_slots[:num_rows].long()
    is_real = slots != state.spare_slot
    is_decode = step.row_starts[:num_rows] == FROM_DEVICE
    samples = is_real & (is_decode | (step.row_samples[:num_rows] != NO_TOKEN))
    good = torch.where(is_valid, token_ids, 0).int()
    state.num_computed.index_copy_(0, slots, step.context_lens[:num_rows])
    state.last_token.index_copy_(0, slots, torch.where(samples, good, state.last_token[slots]))
    state.output_positions.index_copy_(0, slots, state.output_positions[slots] + samples)
    shown = torch.where(samples, torch.where(is_valid, good, INVALID_TOKEN), NO_TOKEN)
    place = ((step.num_steps - 1) % NUM_OUTPUT_STEPS).long()
    step.sampled[:, :num_rows].index_copy_(0, place, shown.unsqueeze(0))

"""What the device keeps between steps (`SlotState`) and what one step is made of (`StepTensors`): plain tensors at fixed
addresses, so that a CUDA graph that was captured once reads whatever the next step needs.

S slots stand for requests; slot S, one more, is spare: padding rows point at it. Letters in shapes: G KV groups, T tokens, R
rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_TOKEN = -1
"""In StepTensors.sampled, for rows that sample nothing."""
INVALID_TOKEN = -2
"""In StepTensors.sampled, for rows whose logits were no numbers."""
FROM_DEVICE = -1
"""In StepTensors.row_starts: a decode, whose place and token the device knows."""
NUM_OUTPUT_STEPS = 64
"""Steps whose tokens are kept: at most so many may be launched before the first of them is copied."""

PARAMETER_NAMES = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
STARTED_WORDS = 1 + len(PARAMETER_NAMES) + 3
"""int32 words that set up a slot: the slot, the parameters' float32 bits, top_k, the seed's low and high word."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """By slot, spare slot included. Counts and tokens change in ops.advance_step, so a step that failed can run again."""

    num_computed: Tensor
    """int32 [S + 1]: tokens whose KV is in the cache."""
    last_token: Tensor
    """int32 [S + 1]: the token that was sampled last, whose KV is not yet computed."""
    output_positions: Tensor
    """int32 [S + 1]: index of the output token that is sampled next; for chunks as the plan of the step says."""
    block_tables: Tensor
    """int32 [G, S + 1, max_blocks]; only ids of existing blocks, whatever the slot."""
    parameters: Tensor
    """float32 [parameters, S + 1], rows as in PARAMETER_NAMES; a temperature of 0 is greedy."""
    top_k: Tensor
    """int32 [S + 1]; 0 is off."""
    seeds: Tensor
    """int64 [S + 1]."""

    @property
    def spare_slot(self) -> int:
        return self.num_computed.shape[0] - 1

    def parameter(self, name: str) -> Tensor:
        """float32 [S + 1], contiguous."""
        return self.parameters[PARAMETER_NAMES.index(name)]


@dataclass(frozen=True, slots=True)
class StepTensors:
    """One step's batch, as large as any step may be; a step uses the first T tokens and R rows."""

    row_slots: Tensor
    """int32 [R]; the spare slot for padding rows, which come last. Stays until the composition changes, like the next three."""
    query_start: Tensor
    """int32 [R + 1]: row r's tokens are [query_start[r], query_start[r + 1]); what follows query_start[R] is padding."""
    row_starts: Tensor
    """int32 [R]: the position of a chunk's first token, or FROM_DEVICE."""
    row_samples: Tensor
    """int32 [R]: the output position a chunk samples at, or NO_TOKEN; of no meaning for decodes."""
    token_ids: Tensor
    """int64 [T]."""
    positions: Tensor
    """int64 [T]."""
    kv_slots: Tensor
    """int64 [G, T]: block_id * block_size + offset; -1 for padding."""
    context_lens: Tensor
    """int32 [R]: tokens in the KV cache after the step; 0 for padding rows."""
    last_tokens: Tensor
    """int64 [R]: each row's last token among the T; any token for padding rows."""
    sampled: Tensor
    """int32 [NUM_OUTPUT_STEPS, R]: tokens of the latest steps, step n in row n % NUM_OUTPUT_STEPS."""
    num_steps: Tensor
    """int32 [1]: steps prepared; the one that is running is step num_steps - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUpdates:
    """What the host sends, packed in one int32 buffer: [places | block ids | started | rows | token ids].

    `rows` are row_slots, query_start (R + 1 of them), row_starts and row_samples one after another, for R padded rows.
    """

    words: Tensor
    """int32, on the device."""
    num_blocks: int
    """Block ids and their places in block_tables, flattened."""
    num_started: int
    """Records of STARTED_WORDS words."""
    num_rows: int
    """R, or 0: the composition is the one of the step before."""
    num_token_ids: int
    """Token ids of chunks, for StepTensors.token_ids from `first_token` on."""
    first_token: int


def make_slot_state(num_slots: int, num_groups: int, max_blocks: int, device: torch.device) -> SlotState:
    """`num_slots` greedy slots without tokens, and the spare one."""
    num_rows = num_slots + 1

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    parameters = zeros(len(PARAMETER_NAMES), num_rows, dtype=torch.float32)
    for name in ("top_p", "repetition_penalty"):
        parameters[PARAMETER_NAMES.index(name)] = 1.0
    return SlotState(
        num_computed=zeros(num_rows),
        last_token=zeros(num_rows),
        output_positions=zeros(num_rows),
        block_tables=zeros(num_groups, num_rows, max_blocks),
        parameters=parameters,
        top_k=zeros(num_rows),
        seeds=zeros(num_rows, dtype=torch.int64),
    )


def make_step_tensors(state: SlotState, max_tokens: int, max_rows: int, device: torch.device) -> StepTensors:
    """An empty batch: every row is padding."""

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return StepTensors(
        row_slots=torch.full((max_rows,), state.spare_slot, dtype=torch.int32, device=device),
        query_start=zeros(max_rows + 1),
        row_starts=torch.full((max_rows,), FROM_DEVICE, dtype=torch.int32, device=device),
        row_samples=torch.full((max_rows,), NO_TOKEN, dtype=torch.int32, device=device),
        token_ids=zeros(max_tokens, dtype=torch.int64),
        positions=zeros(max_tokens, dtype=torch.int64),
        kv_slots=torch.full((state.block_tables.shape[0], max_tokens), -1, dtype=torch.int64, device=device),
        context_lens=zeros(max_rows),
        last_tokens=zeros(max_rows, dtype=torch.int64),
        sampled=torch.full((NUM_OUTPUT_STEPS, max_rows), NO_TOKEN, dtype=torch.int32, device=device),
        num_steps=zeros(1),
    )

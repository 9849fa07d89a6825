"""What a runner keeps of every running request, by slot: `SlotInfo` on the host, `DeviceSlots` on the device.

The host's part is immutable and replaced when a step has been launched, so that a step that failed has changed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ipc.messages import Sampling
from .plan import StartedRequest
from .token_counts import TokenCounts

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below are greedy: dividing by them says nothing more."""


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """What is added to single logits of a request: -inf forbids the token."""

    token_ids: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotInfo:
    """The request in a slot, as the host has to know it while it runs."""

    sampling: Sampling
    prompt_token_ids: Sequence[int]
    num_blocks: tuple[int, ...]
    """Per KV group: length of its row of the block table."""
    is_greedy: bool
    has_filters: bool
    """top_k, top_p or min_p is in use."""
    count_row: int | None
    """Its row of the token counts, where it has penalties."""
    bias: LogitEdits | None
    early_edits: LogitEdits | None
    """What replaces `bias` for output positions below min_tokens: the same, and no token that would end the request."""

    def edits_at(self, position: int) -> LogitEdits | None:
        """What to add to the logits that yield the output token of index `position`."""
        return self.early_edits if position < self.sampling.min_tokens else self.bias


def make_slot_info(
    started: StartedRequest, *, num_groups: int, vocab_size: int, eos_token_ids: Sequence[int], count_row: int | None
) -> SlotInfo:
    """Raises ValueError where the request's token ids are outside the vocabulary."""
    sampling = started.sampling
    ends = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        ends |= set(eos_token_ids)
    for name, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", ends)):
        if any(not 0 <= token_id < vocab_size for token_id in ids):
            raise ValueError(f"{name} names a token id outside the vocabulary of {vocab_size}")
    if count_row is not None or sampling.prompt_logprobs is not None:
        check_token_ids(np.asarray(started.prompt_token_ids, np.int64), vocab_size)
        check_token_ids(np.asarray(started.output_token_ids, np.int64), vocab_size)
    return SlotInfo(
        sampling=sampling,
        prompt_token_ids=started.prompt_token_ids,
        num_blocks=(0,) * num_groups,
        is_greedy=sampling.temperature < GREEDY_TEMPERATURE,
        has_filters=0 < sampling.top_k < vocab_size or sampling.top_p < 1.0 or sampling.min_p > 0.0,
        count_row=count_row,
        bias=_edits(sampling.logit_bias),
        early_edits=_edits(sampling.logit_bias | dict.fromkeys(ends, -np.inf)),
    )


def check_token_ids(token_ids: NDArray[np.int64], vocab_size: int) -> None:
    """Raises ValueError for ids the model has no embedding for; on a GPU they would take the whole process down."""
    if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
        raise ValueError(f"a token id is outside the vocabulary of {vocab_size}")


def has_penalties(sampling: Sampling) -> bool:
    """Whether the request's logits depend on what it has said so far."""
    return sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0 or sampling.repetition_penalty != 1.0


def _edits(values: dict[int, float]) -> LogitEdits | None:
    if not values:
        return None
    return LogitEdits(np.array(list(values), np.int64), np.array(list(values.values()), np.float32))


class DeviceSlots:
    """Tensors by slot on the device: last token, block tables, sampling parameters; token counts where penalties need them."""

    def __init__(self, *, max_num_seqs: int, max_blocks: int, num_groups: int, vocab_size: int, device: torch.device) -> None:
        self.last_token = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self.block_tables = [torch.zeros(max_num_seqs, max_blocks, dtype=torch.int32, device=device) for _ in range(num_groups)]
        self.parameters = torch.zeros(max_num_seqs, len(PARAMETER_NAMES), device=device)
        """float32 [max_num_seqs, parameters], columns as in PARAMETER_NAMES."""
        self.top_k = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self.seeds = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self.token_counts = TokenCounts(max_num_seqs, vocab_size, device)

    def start(self, arrays: dict[str, Tensor]) -> None:
        """Sets slots up for new requests; `arrays` as made by started_arrays."""
        slots = arrays["started_slots"]
        self.parameters.index_copy_(0, slots, arrays["started_parameters"])
        self.top_k.index_copy_(0, slots, arrays["started_top_k"])
        self.seeds.index_copy_(0, slots, arrays["started_seeds"])

    def append_blocks(self, group: int, places: Tensor, block_ids: Tensor) -> None:
        """Writes block ids int32 [n] to places int64 [n] (slot * max_blocks + column) of the group's block table."""
        self.block_tables[group].view(-1).index_copy_(0, places, block_ids)


PARAMETER_NAMES = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


def started_arrays(started: Sequence[StartedRequest]) -> dict[str, NDArray[np.generic]]:
    """What DeviceSlots.start needs of new requests."""
    samplings = [request.sampling for request in started]
    return {
        "started_slots": np.array([request.slot for request in started], np.int64),
        "started_parameters": np.array([[getattr(s, name) for name in PARAMETER_NAMES] for s in samplings], np.float32),
        "started_top_k": np.array([min(sampling.top_k, 2**31 - 1) for sampling in samplings], np.int32),
        "started_seeds": np.array([sampling.seed for sampling in samplings], np.int64),
    }

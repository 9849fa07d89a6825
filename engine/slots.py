"""What the host knows of every running request, by slot: enough to check plans and to find the few requests that need care.

What steps compute with lies on the device (kernels.step_state). The counts here follow it step by step without being read
back: a decode adds one whatever token it yields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..ipc.messages import Sampling
from .plan import StartedRequest

if TYPE_CHECKING:
    from .batch import Batch

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below are greedy: dividing by them says nothing more."""
ALWAYS = 2**31 - 1
"""As an output position: one that no request reaches."""


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

    @property
    def special_until(self) -> int:
        """Output positions below this one need more than a draw from the logits as they are."""
        if self.count_row is not None or self.bias is not None or self.sampling.logprobs is not None:
            return ALWAYS
        return self.sampling.min_tokens if self.early_edits is not None else 0


def make_slot_info(
    started: StartedRequest, *, vocab_size: int, eos_token_ids: Sequence[int], count_row: int | None
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
        has_filters=not is_greedy(sampling)
        and (0 < sampling.top_k < vocab_size or sampling.top_p < 1.0 or sampling.min_p > 0.0),
        count_row=count_row,
        bias=_edits(sampling.logit_bias),
        early_edits=_edits(sampling.logit_bias | dict.fromkeys(ends, -np.inf)),
    )


def check_token_ids(token_ids: NDArray[np.integer], vocab_size: int) -> None:
    """Raises ValueError for ids the model has no embedding for; on a GPU they would take the whole process down."""
    if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
        raise ValueError(f"a token id is outside the vocabulary of {vocab_size}")


def is_greedy(sampling: Sampling) -> bool:
    """Whether the request takes the likeliest token each time."""
    return sampling.temperature < GREEDY_TEMPERATURE


def has_penalties(sampling: Sampling) -> bool:
    """Whether the request's logits depend on what it has said so far."""
    return sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0 or sampling.repetition_penalty != 1.0


def _edits(values: dict[int, float]) -> LogitEdits | None:
    if not values:
        return None
    return LogitEdits(np.array(list(values), np.int64), np.array(list(values.values()), np.float32))


class HostSlots:
    """Arrays by slot, and what requests were started in them."""

    def __init__(self, num_slots: int, num_groups: int) -> None:
        self.infos: dict[int, SlotInfo] = {}
        self.num_computed = np.zeros(num_slots, np.int64)
        self.output_positions = np.zeros(num_slots, np.int64)
        self.special_until = np.zeros(num_slots, np.int64)
        self.has_filters = np.zeros(num_slots, np.bool_)
        self.num_columns = np.zeros((num_groups, num_slots), np.int64)
        """Columns of the block tables that hold blocks; 0 where no request is."""

    def __len__(self) -> int:
        return len(self.num_computed)

    def start(self, slot: int, info: SlotInfo | None) -> None:
        """A request takes the slot; None: it cannot run, and the slot holds nothing."""
        self.num_columns[:, slot] = 0
        self.infos.pop(slot, None)
        if info is not None:
            self.infos[slot] = info
            self.special_until[slot], self.has_filters[slot] = info.special_until, info.has_filters

    def add_blocks(self, group: int, slots: NDArray[np.integer], columns: NDArray[np.integer]) -> None:
        """The group's tables get these entries."""
        np.maximum.at(self.num_columns[group], slots, columns.astype(np.int64) + 1)

    def count_on(self, batch: Batch) -> None:
        """The batch has been launched: what its steps will have computed."""
        self.num_computed[batch.decode_slots] += batch.num_steps
        self.output_positions[batch.decode_slots] += batch.num_steps
        for chunk in batch.chunks:
            self.num_computed[chunk.slot] = chunk.num_computed_tokens + len(chunk.token_ids)
            if chunk.samples_position is not None:
                self.output_positions[chunk.slot] = chunk.samples_position + 1

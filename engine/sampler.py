"""Rows that need more than a draw from the logits as they are: penalties, bias, min_tokens, logprobs.

In order: penalties, bias and min_tokens; then temperature, min_p, top_k, top_p and a keyed draw as for every row. Only these
rows are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import ops
from ..kernels.step_state import SlotState
from .batch import Batch
from .slots import HostSlots, SlotInfo
from .token_counts import TokenCounts


@dataclass(frozen=True, slots=True)
class SpecialRow:
    """A row of logits that is not simply drawn from."""

    row: int
    slot: int
    info: SlotInfo
    position: int
    """Index of the token among the request's output tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialPlan:
    """Which rows use what. `arrays` are uploaded and handed to the functions below as tensors."""

    has_penalties: bool
    has_edits: bool
    reported: tuple[tuple[int, int], ...]
    """(row, how many top tokens) of requests that want logprobs."""
    has_filters: bool
    """Of any row, special or not."""
    arrays: dict[str, NDArray[np.generic]]

    @property
    def is_empty(self) -> bool:
        """Whether all rows are simply drawn from."""
        return not self.arrays

    @property
    def num_top(self) -> int:
        """Most top tokens any of them wants."""
        return max(num_top for _, num_top in self.reported)


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """As returned by ops.top_logprobs, n rows."""

    token_ids: Tensor
    logprobs: Tensor
    ranks: Tensor


def plan_special(batch: Batch, slots: HostSlots) -> SpecialPlan:
    """Finds the special rows among those that sample, and sorts them by what they use."""
    decodes = batch.decode_slots
    has_filters = bool(slots.has_filters[decodes].any())
    positions = slots.output_positions[decodes]
    rows = [
        SpecialRow(row, slot := int(decodes[row]), slots.infos[slot], int(positions[row]))
        for row in np.flatnonzero(positions < slots.special_until[decodes]).tolist()
    ]
    for row, chunk in enumerate(batch.chunks, len(decodes)):
        if chunk.samples_position is not None:
            info = slots.infos[chunk.slot]
            has_filters |= info.has_filters
            if chunk.samples_position < info.special_until:
                rows.append(SpecialRow(row, chunk.slot, info, chunk.samples_position))
    return plan_special_rows(rows, has_filters=has_filters)


def plan_special_rows(rows: Sequence[SpecialRow], *, has_filters: bool) -> SpecialPlan:
    """Sorts rows by what they use."""
    penalized = [row for row in rows if row.info.count_row is not None]
    reported = tuple((row.row, row.info.sampling.logprobs) for row in rows if row.info.sampling.logprobs is not None)
    edits = [(row.row, found) for row in rows if (found := row.info.edits_at(row.position)) is not None]
    arrays: dict[str, NDArray[np.generic]] = {}
    if penalized:
        arrays["penalized_rows"] = np.array([row.row for row in penalized], np.int64)
        arrays["penalized_slots"] = np.array([row.slot for row in penalized], np.int64)
        arrays["count_rows"] = np.array([row.info.count_row for row in penalized], np.int64)
    if edits:
        arrays["edited_rows"] = np.repeat([row for row, _ in edits], [len(edit.token_ids) for _, edit in edits])
        arrays["edited_token_ids"] = np.concatenate([edit.token_ids for _, edit in edits])
        arrays["edit_values"] = np.concatenate([edit.values for _, edit in edits])
    if reported:
        arrays["reported_rows"] = np.array([row for row, _ in reported], np.int64)
    return SpecialPlan(
        has_penalties=bool(penalized), has_edits=bool(edits), reported=reported, has_filters=has_filters, arrays=arrays
    )


def reported_logits(logits: Tensor, plan: SpecialPlan, arrays: dict[str, Tensor]) -> Tensor | None:
    """The logits, untouched, of rows whose requests want logprobs; float32 [n, vocab_size]."""
    return logits.index_select(0, arrays["reported_rows"]).float() if plan.reported else None


def edited_logits(
    logits: Tensor, plan: SpecialPlan, arrays: dict[str, Tensor], state: SlotState, counts: TokenCounts
) -> Tensor:
    """Logits [N, vocab_size] with penalties, bias and min_tokens; may overwrite them."""
    if plan.has_penalties or plan.has_edits:
        logits = ops.editable_logits(logits)
    if plan.has_penalties:
        slots = arrays["penalized_slots"]
        penalties = [
            state.parameter(f"{kind}_penalty").index_select(0, slots) for kind in ("repetition", "frequency", "presence")
        ]
        ops.apply_penalties(logits, arrays["penalized_rows"], counts.counts, arrays["count_rows"], *penalties)
    if plan.has_edits:
        ops.add_to_logits(logits, arrays["edited_rows"], arrays["edited_token_ids"], arrays["edit_values"])
    return logits


def draw(logits: Tensor, row_slots: Tensor, state: SlotState, *, has_filters: bool) -> tuple[Tensor, Tensor]:
    """A token per row of logits [R, vocab_size], and whether the row was numbers; see ops.sample_tokens."""
    temperatures, thresholds = state.parameter("temperature"), None
    if has_filters:
        top_p, min_p = state.parameter("top_p"), state.parameter("min_p")
        thresholds = ops.logit_thresholds_by_slot(logits, row_slots, temperatures, state.top_k, top_p, min_p)
    return ops.sample_tokens(logits, row_slots, temperatures, state.seeds, state.output_positions, thresholds)


def report(raw: Tensor, token_ids: Tensor, plan: SpecialPlan, arrays: dict[str, Tensor]) -> TopLogprobs:
    """Logprobs of the sampled tokens int64 [N], of what `reported_logits` gave."""
    chosen = token_ids.index_select(0, arrays["reported_rows"])
    return TopLogprobs(*ops.top_logprobs(raw, chosen, plan.num_top))


def count_tokens(token_ids: Tensor, plan: SpecialPlan, arrays: dict[str, Tensor], counts: TokenCounts) -> None:
    """Notes the sampled tokens where penalties will look for them."""
    if plan.has_penalties:
        counts.add(arrays["count_rows"], token_ids.index_select(0, arrays["penalized_rows"]))

"""Logits to tokens: penalties, bias and min_tokens, temperature, then min_p, top_k, top_p, then a keyed draw.

`plan_sampling` finds out on the host which rows use what, `sample` does that much and no more on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import ops
from .slots import PARAMETER_NAMES, DeviceSlots, SlotInfo


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of logits that yields a token."""

    slot: int
    info: SlotInfo
    batch_row: int
    """Row of the batch's hidden states."""
    position: int
    """Index of the token among the request's output tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """Which of N rows use what. `arrays` are uploaded and handed to `sample` as tensors."""

    num_rows: int
    num_random: int
    num_filtered: int
    num_penalized: int
    has_edits: bool
    reported_rows: tuple[int, ...]
    """Rows whose requests want logprobs."""
    num_top: int
    """Most top tokens any of them wants."""
    arrays: dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """As returned by ops.top_logprobs, n rows."""

    token_ids: Tensor
    logprobs: Tensor
    ranks: Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """What `sample` yields for N rows."""

    token_ids: Tensor
    """int64 [N]."""
    is_valid: Tensor
    """bool [N]: False where the model produced NaN or no finite logit at all; the token is void."""
    logprobs: TopLogprobs | None
    """Of the plan's reported rows."""


def plan_sampling(rows: Sequence[SampledRow]) -> SamplingPlan:
    """Sorts rows by what they use."""
    random = [index for index, row in enumerate(rows) if not row.info.is_greedy]
    filtered = [place for place, index in enumerate(random) if rows[index].info.has_filters]
    penalized = [(index, row.info.count_row) for index, row in enumerate(rows) if row.info.count_row is not None]
    reported = [(index, row.info.sampling.logprobs) for index, row in enumerate(rows) if row.info.sampling.logprobs is not None]
    edits = [(index, found) for index, row in enumerate(rows) if (found := row.info.edits_at(row.position)) is not None]
    arrays: dict[str, NDArray[np.generic]] = {
        "sampled_rows": np.array([row.batch_row for row in rows], np.int64),
        "sampled_slots": np.array([row.slot for row in rows], np.int64),
        "output_positions": np.array([row.position for row in rows], np.int64),
    }
    if 0 < len(random) < len(rows):
        arrays["random_rows"] = np.array(random, np.int64)
    if filtered:
        arrays["filtered_rows"] = np.array(filtered, np.int64)
    if penalized:
        arrays["penalized_rows"] = np.array([index for index, _ in penalized], np.int64)
        arrays["count_rows"] = np.array([count_row for _, count_row in penalized], np.int64)
    if edits:
        arrays["edited_rows"] = np.repeat([index for index, _ in edits], [len(edit.token_ids) for _, edit in edits])
        arrays["edited_token_ids"] = np.concatenate([edit.token_ids for _, edit in edits])
        arrays["edit_values"] = np.concatenate([edit.values for _, edit in edits])
    if reported:
        arrays["reported_rows"] = np.array([index for index, _ in reported], np.int64)
    return SamplingPlan(
        num_rows=len(rows),
        num_random=len(random),
        num_filtered=len(filtered),
        num_penalized=len(penalized),
        has_edits=bool(edits),
        reported_rows=tuple(index for index, _ in reported),
        num_top=max((num_top for _, num_top in reported), default=0),
        arrays=arrays,
    )


def sample(logits: Tensor, plan: SamplingPlan, arrays: dict[str, Tensor], slots: DeviceSlots) -> Sampled:
    """Draws a token per row of logits float32 [N, vocab_size], which it overwrites. Changes nothing in `slots`."""
    is_valid = torch.isfinite(logits.amax(dim=1))
    raw = logits.index_select(0, arrays["reported_rows"]) if plan.reported_rows else None
    parameters = slots.parameters.index_select(0, arrays["sampled_slots"])
    if plan.num_penalized:
        _penalize(logits, parameters, arrays, slots)
    if plan.has_edits:
        ops.add_to_logits(logits, arrays["edited_rows"], arrays["edited_token_ids"], arrays["edit_values"])
    token_ids = _draw(logits, parameters, plan, arrays, slots)
    logprobs = None
    if raw is not None:
        chosen = token_ids.index_select(0, arrays["reported_rows"])
        logprobs = TopLogprobs(*ops.top_logprobs(raw, chosen, plan.num_top))
    return Sampled(token_ids, is_valid, logprobs)


def note_tokens(sampled: Sampled, plan: SamplingPlan, arrays: dict[str, Tensor], slots: DeviceSlots) -> None:
    """Leaves the tokens where the next step looks for them, and counts them where penalties do."""
    if plan.num_penalized:
        slots.token_counts.add(arrays["count_rows"], sampled.token_ids.index_select(0, arrays["penalized_rows"]))
    slots.last_token.index_copy_(0, arrays["sampled_slots"], sampled.token_ids)


def _column(parameters: Tensor, name: str) -> Tensor:
    return parameters[:, PARAMETER_NAMES.index(name)].contiguous()


def _penalize(logits: Tensor, parameters: Tensor, arrays: dict[str, Tensor], slots: DeviceSlots) -> None:
    rows = arrays["penalized_rows"]
    own = parameters.index_select(0, rows)
    penalties = [_column(own, f"{kind}_penalty") for kind in ("repetition", "frequency", "presence")]
    ops.apply_penalties(logits, rows, slots.token_counts.counts, arrays["count_rows"], *penalties)


def _draw(logits: Tensor, parameters: Tensor, plan: SamplingPlan, arrays: dict[str, Tensor], slots: DeviceSlots) -> Tensor:
    """Greedy rows by argmax, the others by Gumbel-max; int64 [N]."""
    if not plan.num_random:
        return ops.argmax(logits)
    if plan.num_random == plan.num_rows:
        return _draw_random(logits, parameters, arrays["sampled_slots"], arrays["output_positions"], plan, arrays, slots)
    rows = arrays["random_rows"]
    drawn = _draw_random(
        logits.index_select(0, rows),
        parameters.index_select(0, rows),
        arrays["sampled_slots"].index_select(0, rows),
        arrays["output_positions"].index_select(0, rows),
        plan,
        arrays,
        slots,
    )
    return ops.argmax(logits).index_copy_(0, rows, drawn)


def _draw_random(
    logits: Tensor,
    parameters: Tensor,
    row_slots: Tensor,
    positions: Tensor,
    plan: SamplingPlan,
    arrays: dict[str, Tensor],
    slots: DeviceSlots,
) -> Tensor:
    """Tokens of the rows with a temperature; `filtered_rows` counts among these."""
    temperatures = _column(parameters, "temperature")
    thresholds = None
    if plan.num_filtered:
        rows = arrays["filtered_rows"]
        own = parameters.index_select(0, rows)
        filtered = ops.logit_thresholds(
            logits.index_select(0, rows),
            _column(own, "temperature"),
            slots.top_k.index_select(0, row_slots.index_select(0, rows)),
            _column(own, "top_p"),
            _column(own, "min_p"),
        )
        thresholds = torch.full_like(temperatures, -torch.inf).index_copy_(0, rows, filtered)
    return ops.sample_gumbel(logits, temperatures, thresholds, slots.seeds.index_select(0, row_slots), positions)

"""Runs steps of a torch model: plan in, tokens out, the device never waited for in between.

What later steps need (last tokens, block tables, sampling parameters, counts) stays on the device by slot. On CUDA `launch`
only queues work and results come back through pinned memory behind an event; on the CPU `launch` computes. Whatever goes wrong
with a whole step is raised by `wait`; such a step has changed nothing, and the runner takes the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import ops
from .batch import Batch, Limits, Row, attention_batches, check_request, pack
from .model_config import ModelConfig
from .plan import PendingStep, StartedRequest, StepPlan
from .prompt_logprobs import plan_scoring, score
from .results import (
    LaunchedStep,
    RaisedStep,
    SampledIndex,
    SampledPart,
    ScoredPart,
    download_logprobs,
    download_sampled,
)
from .sampler import SampledRow, SamplingPlan, note_tokens, plan_sampling, sample
from .slots import DeviceSlots, SlotInfo, has_penalties, make_slot_info, started_arrays
from .staging import start_download, upload
from .token_counts import counted_arrays


class Model(Protocol):
    """What a runner asks of a model; shapes as in models.causal_lm."""

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        batches: Sequence[ops.AttentionBatch],
    ) -> Tensor:
        """Hidden states [T, hidden] of T tokens."""

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [N, vocab_size] of N rows of hidden states, in memory of its own."""


class ModelRunner:
    """Implements plan.Runner."""

    def __init__(
        self,
        model: Model,
        model_config: ModelConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
    ) -> None:
        self._model, self._device = model, device
        self._eos_token_ids = model_config.eos_token_ids
        self._max_num_batched_tokens = max_num_batched_tokens
        groups = model_config.kv_groups
        self._limits = Limits(
            num_blocks=num_blocks,
            block_size=block_size,
            max_blocks=-(-max_model_len // block_size),
            num_groups=len(groups),
            vocab_size=model_config.vocab_size,
        )
        self._infos: dict[int, SlotInfo] = {}
        self._slots = DeviceSlots(
            max_num_seqs=max_num_seqs,
            max_blocks=self._limits.max_blocks,
            num_groups=len(groups),
            vocab_size=model_config.vocab_size,
            device=device,
        )
        self._kv_caches = [
            ops.make_kv_cache(num_blocks, block_size, model_config.num_kv_heads, model_config.head_dim, dtype, device)
            for _ in range(max(len(group.layers) for group in groups))
        ]

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """See plan.Runner. Never raises."""
        try:
            return self._launch(plan)
        except Exception as error:
            return RaisedStep(error)

    def _launch(self, plan: StepPlan) -> LaunchedStep:
        assert plan.num_tokens <= self._max_num_batched_tokens
        infos = dict(self._infos)
        arrays, failures = self._start(plan.started, infos)
        rows, errors = self._check(plan, infos, failures)
        sampled, scored = None, None
        if rows:
            sampled, scored = self._compute(pack(rows, self._limits), arrays)
        elif arrays:
            self._set_up(upload(arrays, self._device))
        self._infos = infos
        return LaunchedStep(
            num_requests=len(plan.requests), errors=errors, sampled=sampled, scored=scored, synchronize=self._end_of_work()
        )

    def _start(
        self, started: Sequence[StartedRequest], infos: dict[int, SlotInfo]
    ) -> tuple[dict[str, NDArray[np.generic]], dict[int, str]]:
        """Notes new requests in `infos`; returns what the device must learn of them, and slots whose request cannot run."""
        failures: dict[int, str] = {}
        for request in started:
            infos.pop(request.slot, None)
            try:
                infos[request.slot] = self._make_info(request)
            except (ValueError, TypeError, OverflowError) as error:
                failures[request.slot] = str(error)
            except torch.OutOfMemoryError:
                failures[request.slot] = "no device memory is left for the token counts that penalties need"
        able = [request for request in started if request.slot not in failures]
        if not able:
            return {}, failures
        counted = [(request, row) for request in able if (row := infos[request.slot].count_row) is not None]
        arrays = started_arrays(able)
        if counted:
            arrays |= counted_arrays(counted, self._limits.vocab_size)
        return arrays, failures

    def _make_info(self, request: StartedRequest) -> SlotInfo:
        counts = self._slots.token_counts
        count_row = None
        if has_penalties(request.sampling):
            count_row = counts.take_row(request.slot)
        else:
            counts.release_row(request.slot)
        return make_slot_info(
            request,
            num_groups=self._limits.num_groups,
            vocab_size=self._limits.vocab_size,
            eos_token_ids=self._eos_token_ids,
            count_row=count_row,
        )

    def _check(self, plan: StepPlan, infos: dict[int, SlotInfo], failures: dict[int, str]) -> tuple[list[Row], dict[int, str]]:
        """The requests that can be computed, their blocks counted in `infos`, and what is wrong with the others."""
        rows: list[Row] = []
        errors: dict[int, str] = {}
        for index, request in enumerate(plan.requests):
            if request.slot in failures:
                errors[index] = failures[request.slot]
                continue
            try:
                row = check_request(index, request, infos, self._limits)
            except (ValueError, TypeError, OverflowError) as error:
                errors[index] = str(error)
                continue
            infos[request.slot] = row.info
            rows.append(row)
        return rows, errors

    def _set_up(self, arrays: dict[str, Tensor]) -> None:
        if "started_slots" in arrays:
            self._slots.start(arrays)
        if "counted_rows" in arrays:
            self._slots.token_counts.reset(arrays)

    def _compute(self, batch: Batch, started: dict[str, NDArray[np.generic]]) -> tuple[SampledPart | None, ScoredPart | None]:
        """Queues the step. What a later step reads is written last, when nothing can fail any more."""
        slots, limits = self._slots, self._limits
        owners, sampling = _plan_sampling(batch)
        scoring = plan_scoring(batch)
        arrays = upload(started | batch.arrays | sampling.arrays | scoring.arrays, self._device)
        self._set_up(arrays)
        token_ids = arrays["token_ids"]
        token_ids.index_copy_(0, arrays["device_tokens"], slots.last_token.index_select(0, arrays["device_slots"]))
        batches = attention_batches(batch, arrays, slots, limits)
        hidden = self._model(token_ids, arrays["positions"], self._kv_caches, batches)
        scored, sampled_part = None, None
        if scoring.segments:
            scores, is_valid = score(hidden, self._model.logits, scoring, arrays, limits.vocab_size)
            scored = ScoredPart(scoring, download_logprobs(scores), start_download(is_valid))
        if owners:
            logits = self._model.logits(hidden.index_select(0, arrays["sampled_rows"]))
            sampled = sample(logits, sampling, arrays, slots)
            sampled_part = SampledPart(owners, sampling, download_sampled(sampled))
            note_tokens(sampled, sampling, arrays, slots)
        return sampled_part, scored

    def _end_of_work(self) -> Callable[[], None]:
        """A function that waits for what has been queued so far."""
        if self._device.type != "cuda":
            return lambda: None
        event = torch.cuda.current_stream(self._device).record_event()
        return lambda: event.synchronize()


def _plan_sampling(batch: Batch) -> tuple[tuple[SampledIndex, ...], SamplingPlan]:
    """Which rows of logits the step needs: the last one of every request that samples."""
    owners: list[SampledIndex] = []
    rows: list[SampledRow] = []
    for row, end in zip(batch.rows, batch.query_start[1:].tolist(), strict=True):
        position = row.request.samples_position
        if position is not None:
            owners.append(SampledIndex(row.index, row.info.sampling.logprobs))
            rows.append(SampledRow(row.request.slot, row.info, end - 1, position))
    return tuple(owners), plan_sampling(rows)

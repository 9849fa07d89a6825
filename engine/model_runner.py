"""Runs steps of a torch model: plan in, tokens out, the device never waited for in between.

What steps compute with (counts, last tokens, block tables, sampling parameters) stays on the device by slot; a plan adds what
has changed, in one copy, and a steady decode step nothing. On CUDA `launch` only queues work, mostly graphs of padded sizes,
and tokens come back through pinned memory behind an event; on the CPU `launch` computes, at exact sizes. Whatever goes wrong
with a whole step is raised by `wait`; after that its requests are started anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import ops
from ..kernels.step_state import NUM_OUTPUT_STEPS
from .batch import Batch, Limits, check_plan
from .graphs import CapturedStep, StepGraphs
from .model_config import ModelConfig
from .plan import PendingStep, StartedRequest, StepPlan
from .prefix_sharing import PrefixSharing
from .prompt_logprobs import ScoringPlan, plan_scoring, score
from .results import LaunchedStep, RaisedStep, ReportedPart, ScoredPart, download_logprobs
from .sampler import SpecialPlan, count_tokens, edited_logits, plan_special, report, reported_logits
from .slots import HostSlots, SlotInfo, has_penalties, make_slot_info
from .staging import start_download
from .step_program import Model, StepProgram
from .step_sender import StepSender
from .step_sizes import StepSize, StepSizes
from .step_timing import StepTimer
from .token_counts import TokenCounts, counted_arrays


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
        uses_graphs: bool = True,
        shares_prefixes: bool = True,
        times_steps: bool = False,
        deterministic: bool = False,
    ) -> None:
        """With `deterministic`, and a model of invariant products, results are bitwise the same whatever else runs. The three
        before it mean nothing on the CPU: CUDA graphs; keys that several requests share are read once, which makes how a
        request's attention is rounded depend on the others, so never if deterministic; `timer` records when steps ran.
        """
        # On meta kernels can be found, as they are launched on CUDA, and none can run.
        self._device, self._is_cuda = device, device.type in ("cuda", "meta")
        self._pads = self._is_cuda
        self._eos_token_ids = model_config.eos_token_ids
        self._max_num_batched_tokens = max_num_batched_tokens
        groups = model_config.kv_groups
        self._limits = Limits(
            num_blocks=num_blocks,
            block_size=block_size,
            max_blocks=-(-max_model_len // block_size),
            num_groups=len(groups),
            num_slots=max_num_seqs,
            vocab_size=model_config.vocab_size,
        )
        kv_caches = [
            ops.make_kv_cache(num_blocks, block_size, model_config.num_kv_heads, model_config.head_dim, dtype, device)
            for _ in range(max(len(group.layers) for group in groups))
        ]
        self._sizes, self._is_deterministic = StepSizes(max_num_seqs, max_num_batched_tokens), deterministic
        self._program = StepProgram(
            model, model_config, kv_caches, self._limits, self._sizes, device, deterministic=deterministic
        )
        self._sender = StepSender(self._program, self._limits, device)
        self._slots = HostSlots(max_num_seqs, len(groups))
        self._counts = TokenCounts(max_num_seqs, model_config.vocab_size, device)
        self._is_consistent = True
        self._sharing: PrefixSharing | None = None
        for index, group in enumerate(groups):
            if self._is_cuda and shares_prefixes and not deterministic and group.window is None:
                self._sharing = PrefixSharing(self._limits, index, model_config.num_heads // model_config.num_kv_heads)
        self._graphs: StepGraphs | None = None
        if self._is_cuda and uses_graphs:
            self._graphs = StepGraphs(self._program, self._sizes, device, make_empty=self._sender.send_padding)
        self.timer = StepTimer(device) if self._is_cuda and times_steps else None

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """See plan.Runner. Never raises."""
        try:
            launched = self._launch(plan)
        except Exception as error:
            self._is_consistent = False
            return RaisedStep(error)
        if self._graphs is not None:
            self._graphs.capture_due()
        return launched

    @torch.inference_mode()
    def prepare(self) -> None:
        """Captures the first graphs; to be called once, before the engine is ready."""
        if self._graphs is not None:
            self._graphs.capture_at_start()

    @torch.inference_mode()
    def on_idle(self) -> bool:
        """See plan.Runner: captures one more graph."""
        return self._graphs is not None and self._graphs.capture_missing()

    def kernel_calls(self) -> Sequence[Callable[[], object]]:
        """Calls that launch every kernel that steps do, at their usual sizes, large ones first; their results mean nothing."""
        sizes = self._sizes.usual + (self._sizes.powers_of_two if self._is_deterministic else ())
        if self._sharing is not None:
            sizes += tuple(replace(size, has_shared=True) for size in sizes)
        return [lambda size=size: self._program.launch_kernels(size) for size in sorted(sizes, reverse=True)]  # type: ignore[misc]

    def _launch(self, plan: StepPlan) -> LaunchedStep:
        assert plan.num_tokens <= self._max_num_batched_tokens
        assert plan.num_decode_steps <= NUM_OUTPUT_STEPS
        if not self._is_consistent:
            self._sender.forget()
            self._program.reset_steps()
            self._is_consistent = True
        failures = self._start(plan.started)
        able = [request for request in plan.started if request.slot not in failures]
        batch = check_plan(plan, self._slots, failures, self._limits)
        scoring, special = plan_scoring(batch, self._slots), plan_special(batch, self._slots)
        shared = None if self._sharing is None else self._sharing.find(batch, self._slots.num_computed)
        size = self._pick_size(batch, has_shared=shared is not None)
        captured = self._graphs.get(size) if self._graphs is not None and not scoring.segments else None
        start = None if self.timer is None else self.timer.mark()
        counted = self._counted_arrays(able)
        arrays = self._sender.send(batch, able, size, shared, counted | scoring.arrays | special.arrays)
        if counted:
            self._counts.reset(arrays)
        reported, scored = None, None
        for _ in range(batch.num_steps if batch.num_rows else 0):
            reported, scored = self._run_step(batch, size, captured, scoring, special, arrays)
        launched = LaunchedStep(
            batch=batch,
            num_plan_rows=plan.num_rows,
            token_ids=self._program.download(batch.num_steps, batch.num_rows),
            reported=reported,
            scored=scored,
            synchronize=self._end_of_work(),
        )
        self._slots.count_on(batch)
        if self.timer is not None and start is not None:
            self.timer.note(start, batch, has_graph=captured is not None)
        return launched

    def _start(self, started: Sequence[StartedRequest]) -> dict[int, str]:
        """Notes new requests; returns slots whose request cannot run, and why."""
        failures: dict[int, str] = {}
        for request in started:
            self._slots.start(request.slot, None)
            try:
                self._slots.start(request.slot, self._make_info(request))
            except (ValueError, TypeError, OverflowError) as error:
                failures[request.slot] = str(error)
            except torch.OutOfMemoryError:
                failures[request.slot] = "no device memory is left for the token counts that penalties need"
        return failures

    def _make_info(self, request: StartedRequest) -> SlotInfo:
        count_row = None
        if has_penalties(request.sampling):
            count_row = self._counts.take_row(request.slot)
        else:
            self._counts.release_row(request.slot)
        return make_slot_info(
            request, vocab_size=self._limits.vocab_size, eos_token_ids=self._eos_token_ids, count_row=count_row
        )

    def _counted_arrays(self, started: Sequence[StartedRequest]) -> dict[str, NDArray[np.generic]]:
        rows = [(request, self._slots.infos[request.slot].count_row) for request in started]
        counted = [(request, row) for request, row in rows if row is not None]
        return counted_arrays(counted, self._limits.vocab_size) if counted else {}

    def _pick_size(self, batch: Batch, *, has_shared: bool) -> StepSize:
        """Padded on a GPU, with graphs or without, so that both compute the same; exact on the CPU."""
        num_tokens, num_rows = batch.num_tokens, batch.num_rows
        if not self._pads:
            return StepSize(num_tokens, num_rows, num_tokens == num_rows)
        size = self._sizes.padded(max(1, num_tokens), max(1, num_rows), is_decode=num_tokens == num_rows)
        size = replace(size, has_shared=has_shared)
        return size if self._graphs is None else self._graphs.pick(size)

    def _run_step(
        self,
        batch: Batch,
        size: StepSize,
        captured: CapturedStep | None,
        scoring: ScoringPlan,
        special: SpecialPlan,
        arrays: dict[str, Tensor],
    ) -> tuple[ReportedPart | None, ScoredPart | None]:
        """Queues one step; what the next one reads is written last."""
        program, scored = self._program, None
        if captured is not None:
            captured.forward.replay()
            program.count_step()
            logits = captured.logits
        else:
            hidden = program.hidden_states(size)
            program.count_step()
            if scoring.segments:
                scores, is_valid = score(hidden, program.model.logits, scoring, arrays, self._limits.vocab_size)
                scored = ScoredPart(scoring, download_logprobs(scores), start_download(is_valid))
            logits = program.logits(hidden, size)
        if not special.is_empty:
            return self._sample_specially(logits, batch, special, arrays), scored
        if captured is not None:
            captured.sampling[special.has_filters].replay()
        else:
            program.sample(logits, has_filters=special.has_filters)
        return None, scored

    def _sample_specially(
        self, logits: Tensor, batch: Batch, special: SpecialPlan, arrays: dict[str, Tensor]
    ) -> ReportedPart | None:
        raw = reported_logits(logits, special, arrays)
        logits = edited_logits(logits, special, arrays, self._program.state, self._counts)
        token_ids, is_valid = self._program.draw(logits, has_filters=special.has_filters)
        reported = None
        if raw is not None:
            rows = tuple((batch.index(row), num_top) for row, num_top in special.reported)
            reported = ReportedPart(rows, download_logprobs(report(raw, token_ids, special, arrays)))
        count_tokens(token_ids, special, arrays, self._counts)
        self._program.advance(token_ids, is_valid)
        return reported

    def _end_of_work(self) -> Callable[[], None]:
        """A function that waits for what has been queued so far."""
        if not self._is_cuda:
            return lambda: None
        event = torch.cuda.current_stream(self._device).record_event()
        return lambda: event.synchronize()

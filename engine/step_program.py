"""The work of one step on the device, the same whether it is launched kernel by kernel or captured in a graph.

`forward` ends in a buffer of logits, `sample` begins there; between the two the host may have logits edited. Everything a step
reads lies at fixed addresses (kernels.step_state), everything it allocates is gone with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..kernels import ops
from ..kernels.step_state import NUM_OUTPUT_STEPS, STARTED_WORDS, StepUpdates, make_slot_state, make_step_tensors
from .attention_rows import rows_of_requests, rows_of_tokens
from .batch import Limits
from .model_config import ModelConfig
from .prefix_sharing import make_shared_chunks, shared_chunks_of
from .sampler import draw
from .staging import start_download
from .step_sizes import StepSize, StepSizes


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
        """[N, vocab_size] of N rows of hidden states, in memory of its own."""


class StepProgram:
    """A model, its KV cache and the state of the slots."""

    def __init__(
        self,
        model: Model,
        model_config: ModelConfig,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        limits: Limits,
        sizes: StepSizes,
        device: torch.device,
        *,
        deterministic: bool = False,
    ) -> None:
        """`deterministic`: attention and draws, too, are bitwise the same for a request whatever else a step computes."""
        self.model = model
        self._is_deterministic = deterministic
        self.kv_caches = kv_caches
        self._config = model_config
        self._block_size = limits.block_size
        self._max_context_len = limits.max_blocks * limits.block_size
        self.state = make_slot_state(limits.num_slots, limits.num_groups, limits.max_blocks, device)
        self.step = make_step_tensors(self.state, sizes.max_tokens, sizes.max_rows, device)
        self.shared = make_shared_chunks(sizes.max_rows, device)
        self._num_steps = 0

    def hidden_states(self, size: StepSize) -> Tensor:
        """Prepares the step and runs the layers: [num_tokens, hidden]."""
        num_tokens, num_rows = size.num_tokens, size.num_rows
        ops.prepare_step(self.state, self.step, num_tokens, num_rows, self._block_size)
        batches = self._attention_batches(size)
        return self.model(self.step.token_ids[:num_tokens], self.step.positions[:num_tokens], self.kv_caches, batches)

    def logits(self, hidden: Tensor, size: StepSize) -> Tensor:
        """[num_rows, vocab_size], of every row's last token."""
        if not size.is_decode:
            hidden = hidden.index_select(0, self.step.last_tokens[: size.num_rows])
        return self.model.logits(hidden)

    def draw(self, logits: Tensor, *, has_filters: bool) -> tuple[Tensor, Tensor]:
        """A token per row, and whether its logits were numbers."""
        row_slots = self.step.row_slots[: len(logits)]
        if self._is_deterministic and logits.is_cpu:
            # What torch's functions of exponentials yield for a row may depend on the rows beside it.
            rows = [slice(row, row + 1) for row in range(len(logits))]
            drawn = [draw(logits[row], row_slots[row], self.state, has_filters=has_filters) for row in rows]
            token_ids, is_valid = zip(*drawn, strict=True)
            return torch.cat(token_ids), torch.cat(is_valid)
        return draw(logits, row_slots, self.state, has_filters=has_filters)

    def sample(self, logits: Tensor, *, has_filters: bool) -> None:
        """Draws, and counts the slots on."""
        self.advance(*self.draw(logits, has_filters=has_filters))

    def advance(self, token_ids: Tensor, is_valid: Tensor) -> None:
        """The last thing a step does: what it sampled is what the next one reads."""
        ops.advance_step(self.state, self.step, token_ids, is_valid)

    def launch_kernels(self, size: StepSize) -> None:
        """One step of this size with whatever lies in the tensors: for a device that compiles and does not run."""
        num_words = 2 + STARTED_WORDS + 4 * size.num_rows + 1 + 1
        words = torch.empty(num_words, dtype=torch.int32, device=self.step.row_slots.device)
        updates = StepUpdates(words=words, num_blocks=1, num_started=1, num_rows=size.num_rows, num_token_ids=1, first_token=0)
        ops.apply_step_updates(self.state, self.step, updates)
        logits = self.logits(self.hidden_states(size), size)
        for has_filters in (False, True):
            self.sample(logits, has_filters=has_filters)

    def download(self, num_steps: int, num_rows: int) -> Tensor:
        """Starts copying what the latest steps sampled to the host; int32 [num_steps, num_rows]."""
        first = (self._num_steps - num_steps) % NUM_OUTPUT_STEPS
        sampled = self.step.sampled[first : first + num_steps, :num_rows]
        if len(sampled) < num_steps:
            sampled = torch.cat((sampled, self.step.sampled[: num_steps - len(sampled), :num_rows]))
        return sampled.clone() if sampled.is_cpu else start_download(sampled)

    def count_step(self) -> None:
        """A step has been queued."""
        self._num_steps += 1

    def reset_steps(self) -> None:
        """It is not known how many steps have been queued."""
        self.step.num_steps.zero_()
        self._num_steps = 0

    def _attention_batches(self, size: StepSize) -> list[ops.AttentionBatch]:
        """Per KV group."""
        each_token = self._is_deterministic and not size.is_decode
        rows = rows_of_tokens(self.step, size) if each_token else rows_of_requests(self.step, size)
        max_query_len = 1 if each_token or size.is_decode else size.num_tokens
        max_context_len, host_lengths = self._max_context_len, None
        if rows.context_lens.is_cpu:
            host_lengths = torch.stack((rows.query_start.diff(), rows.context_lens))
            max_query_len, max_context_len = (int(longest) for longest in host_lengths.amax(dim=1))
        shared = shared_chunks_of(size, self.shared) if size.has_shared else None
        batches = []
        for group, table, kv_slots in zip(self._config.kv_groups, self.state.block_tables, self.step.kv_slots, strict=True):
            batch = ops.AttentionBatch(
                block_table=table,
                row_slots=rows.row_slots,
                query_start=rows.query_start,
                context_lens=rows.context_lens,
                kv_slots=kv_slots[: size.num_tokens],
                max_query_len=max_query_len,
                max_context_len=max_context_len,
                host_lengths=host_lengths,
                shared=shared if group.window is None else None,
                is_invariant=self._is_deterministic,
            )
            config = self._config
            batches.append(ops.plan_attention(batch, config.num_heads, config.num_kv_heads, config.head_dim, group.window))
        return batches

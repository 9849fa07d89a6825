"""What a step allocates stays below what the memory plan sets aside for it, in the plain-PyTorch backend."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.engine.dummy_weights import fill_with_dummy_weights
from penstock.engine.memory import plan_memory
from penstock.engine.model_runner import ModelRunner
from penstock.engine.models import build_model
from penstock.engine.plan import NewBlocks, ScheduledChunk, StartedRequest, StepPlan
from penstock.ipc.messages import Sampling
from penstock.kernels import ops
from tests.engine.test_memory import CPU, TINY, engine


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations made and that still live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor)
        self.peak_bytes = max(self.peak_bytes, sum(self.sizes[pointer] for pointer in +self.live))
        return result

    def _watch(self, tensor: torch.Tensor) -> None:
        pointer = tensor.untyped_storage().data_ptr()
        self.live[pointer] += 1
        self.sizes[pointer] = tensor.untyped_storage().nbytes()
        weakref.finalize(tensor, self.live.subtract, [pointer])


@pytest.mark.parametrize("query_lens", [[512], [1, 1, 1, 1], [300, 1, 1, 210]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_takes_no_more_than_was_planned_for_it(query_lens: list[int], dtype: str) -> None:
    config, settings = replace(TINY, max_position_embeddings=1024), engine(max_num_batched_tokens=512, max_num_seqs=4)
    plan = plan_memory(config, settings, CPU, dtype)
    model = build_model(config, device="cpu", dtype=getattr(torch, dtype))
    fill_with_dummy_weights(model, 0)
    num_requests, num_tokens = len(query_lens), sum(query_lens)
    cache = ops.make_kv_cache(64 * num_requests, 16, 2, 16, getattr(torch, dtype), torch.device("cpu"))
    batch = ops.AttentionBatch(
        block_table=torch.arange(64 * num_requests, dtype=torch.int32).view(num_requests, 64),
        row_slots=torch.arange(num_requests, dtype=torch.int32),
        query_start=torch.tensor([0, *query_lens]).cumsum(0).int(),
        context_lens=torch.full((num_requests,), 1024, dtype=torch.int32),
        kv_slots=torch.arange(num_tokens),
        max_query_len=max(query_lens),
        max_context_len=1024,
    )
    ids = torch.zeros(num_tokens, dtype=torch.int64)
    with torch.no_grad(), PeakMemory() as peak:
        model.logits(model(ids, ids, [cache] * 4, [batch])[:num_requests])
    assert plan.step.total * (0.1 if num_tokens == 512 else 0.01) < peak.peak_bytes < plan.step.total


def first_step(num_requests: int, **sampling: Any) -> StepPlan:
    """Requests of 8 prompt tokens each, all of which sample."""
    prompt, settings = [*range(8)], Sampling(seed=1, max_tokens=5, **sampling)
    slots = np.arange(num_requests, dtype=np.int32)
    return StepPlan(
        started=tuple(
            StartedRequest(slot=slot, sampling=settings, prompt_token_ids=prompt, output_token_ids=[])
            for slot in range(num_requests)
        ),
        decode_slots=np.zeros(0, np.int32),
        chunks=tuple(
            ScheduledChunk(slot=slot, num_computed_tokens=0, token_ids=np.array(prompt, np.int32), samples_position=0)
            for slot in range(num_requests)
        ),
        new_blocks=(NewBlocks(slots=slots, columns=np.zeros_like(slots), block_ids=slots),),
    )


@pytest.mark.parametrize(
    ("vocab_size", "sampling"),
    [
        (100_000, {"top_p": 0.999, "frequency_penalty": 0.5, "logprobs": 20, "logit_bias": {5: 1.0}}),
        (32_000, {"prompt_logprobs": 20}),
    ],
    ids=["everything at once", "scored prompts"],
)
def test_sampling_takes_no_more_than_was_planned_for_it(vocab_size: int, sampling: dict[str, Any]) -> None:
    config, settings = (
        replace(TINY, vocab_size=vocab_size, max_position_embeddings=64),
        engine(max_num_batched_tokens=512, max_num_seqs=64),
    )
    plan = plan_memory(config, settings, CPU, "float32")
    with torch.inference_mode():
        model = build_model(config, device="cpu", dtype=torch.float32)
        fill_with_dummy_weights(model, 0)
    runner = ModelRunner(
        model,
        config,
        device=torch.device("cpu"),
        dtype=torch.float32,
        num_blocks=64,
        block_size=16,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        max_model_len=64,
    )
    with PeakMemory() as peak:
        result = runner.launch(first_step(64, **sampling)).wait()
    assert not result.errors
    assert plan.step.total * 0.2 < peak.peak_bytes < plan.step.total

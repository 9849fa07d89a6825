"""Our models give transformers' logits, for every architecture and variant, from the same files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor

from penstock.engine.model_config import ModelConfig
from penstock.engine.models import CausalLM, build_model
from penstock.engine.tensor_parallel import TensorParallel
from penstock.engine.weights import load_weights
from penstock.kernels import ops
from tests.checkpoints import CHECKPOINTS, VOCAB_SIZE, make_checkpoint

BLOCK_SIZE = 16
PROMPT_LENGTH = 100


@dataclass
class Reference:
    """A checkpoint and what transformers makes of one prompt."""

    model_dir: Path
    token_ids: Tensor
    logits: Tensor


@pytest.fixture(scope="module", params=CHECKPOINTS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    from transformers import AutoModelForCausalLM

    model_dir = make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    token_ids = torch.randint(0, VOCAB_SIZE, (PROMPT_LENGTH,), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        yield Reference(model_dir, token_ids, model(token_ids[None]).logits[0])


def load(model_dir: Path, parallel: TensorParallel | None = None) -> CausalLM:
    model = build_model(ModelConfig.from_dir(model_dir), device="cpu", dtype=torch.float32, parallel=parallel)
    load_weights(model, model_dir)
    return model


class PagedRun:
    """One request's KV cache, in blocks that are out of order and different for every KV group."""

    def __init__(self, model: CausalLM, max_tokens: int, num_kv_heads: int | None = None) -> None:
        config = model.config
        self.model, self.num_computed = model, 0
        num_columns = -(-max_tokens // BLOCK_SIZE)
        num_blocks = num_columns * len(config.kv_groups)
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(2)).int()
        self.tables = order.view(len(config.kv_groups), 1, num_columns)
        num_pairs = max(len(group.layers) for group in config.kv_groups)
        shape = (
            num_blocks,
            BLOCK_SIZE,
            num_kv_heads or config.num_kv_heads,
            config.head_dim,
            torch.float32,
            torch.device("cpu"),
        )
        self.kv_caches = [ops.make_kv_cache(*shape) for _ in range(num_pairs)]

    def feed(self, token_ids: Tensor) -> Tensor:
        """Logits of all new tokens."""
        start, end = self.num_computed, self.num_computed + len(token_ids)
        positions = torch.arange(start, end)
        batches = [
            ops.AttentionBatch(
                block_table=table,
                row_slots=torch.zeros(1, dtype=torch.int32),
                query_start=torch.tensor([0, len(token_ids)], dtype=torch.int32),
                context_lens=torch.tensor([end], dtype=torch.int32),
                kv_slots=table[0, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE,
                max_query_len=len(token_ids),
                max_context_len=end,
            )
            for table in self.tables
        ]
        self.num_computed = end
        with torch.inference_mode():
            return self.model.logits(self.model(token_ids, positions, self.kv_caches, batches))


def test_logits_of_a_whole_prompt_are_those_of_transformers(reference: Reference) -> None:
    run = PagedRun(load(reference.model_dir), PROMPT_LENGTH)
    logits = run.feed(reference.token_ids)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, reference.logits, atol=2e-5, rtol=1e-5)


def test_logits_of_a_prompt_in_chunks_are_those_of_transformers(reference: Reference) -> None:
    run = PagedRun(load(reference.model_dir), PROMPT_LENGTH)
    logits = torch.cat([run.feed(chunk) for chunk in torch.split(reference.token_ids, [37, 1, 16, 1, 45])])
    torch.testing.assert_close(logits, reference.logits, atol=2e-5, rtol=1e-5)


class Ranks:
    """The two ranks of a model as threads of this process, which meet at a barrier to put their tensors together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = Barrier(size)
        self.shares: list[Tensor] = [torch.empty(0)] * size

    def rank(self, rank: int) -> TensorParallel:
        def together(x: Tensor) -> list[Tensor]:
            self.shares[rank] = x
            self.barrier.wait(timeout=30)
            shares = list(self.shares)
            self.barrier.wait(timeout=30)
            return shares

        return TensorParallel(
            rank=rank,
            size=self.size,
            all_reduce=lambda x: torch.stack(together(x)).sum(0),
            all_gather=lambda x: torch.cat(together(x), dim=-1),
        )


@pytest.mark.parametrize(("name", "size"), [("llama_biases", 2), ("qwen3_mixed_windows", 4), ("qwen2_tied_old_style", 2)])
def test_ranks_that_hold_a_share_each_give_the_whole_models_logits(name: str, size: int, tmp_path: Path) -> None:
    model_dir = make_checkpoint(name, tmp_path)
    token_ids = torch.arange(3, 43)
    expected = PagedRun(load(model_dir), len(token_ids)).feed(token_ids)
    ranks, results = Ranks(size), {}

    def run(rank: int) -> None:
        model = load(model_dir, ranks.rank(rank))
        num_kv_heads = max(1, model.config.num_kv_heads // size)
        results[rank] = PagedRun(model, len(token_ids), num_kv_heads).feed(token_ids)

    threads = [Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(results) == list(range(size))
    for logits in results.values():
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)

"""Paged attention against a float64 loop over requests, queries and heads, with NaN wherever nobody may look."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from penstock.kernels import ops, reference_attention
from tests.kernels.comparing import DTYPES, assert_close, random_tensor

pytestmark = pytest.mark.usefixtures("poisoned_empty")


@dataclass
class Case:
    """A batch over a cache that is NaN everywhere but where a request's visible keys and values lie."""

    batch: ops.AttentionBatch
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    """Per request [context, Hkv, D]."""
    lengths: list[tuple[int, int]]
    """Per request (query length, context length)."""


def make_case(
    lengths: list[tuple[int, int]],
    *,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    block_size: int = 4,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    with_host_lengths: bool = True,
) -> Case:
    num_heads, num_kv_heads = heads
    max_blocks = max(-(-context // block_size) for _, context in lengths) + 2
    num_slots = len(lengths) + 3
    num_blocks = num_slots * max_blocks + 1
    k_cache, v_cache = ops.make_kv_cache(num_blocks, block_size, num_kv_heads, head_dim, dtype, torch.device(device))
    k_cache.fill_(torch.nan)
    v_cache.fill_(torch.nan)
    block_table = torch.randperm(num_blocks - 1).view(num_slots, max_blocks)
    row_slots = torch.randperm(num_slots)[: len(lengths)]
    keys, values = [], []
    for row, (query_len, context_len) in enumerate(lengths):
        slot = int(row_slots[row])
        keys.append(random_tensor(context_len, num_kv_heads, head_dim, dtype=dtype, device=device))
        values.append(random_tensor(context_len, num_kv_heads, head_dim, dtype=dtype, device=device))
        first_visible = 0 if window is None else max(0, context_len - query_len - window + 1)
        for position in range(first_visible, context_len):
            block, offset = int(block_table[slot, position // block_size]), position % block_size
            k_cache[block, :, offset], v_cache[block, :, offset] = keys[-1][position], values[-1][position]
        block_table[slot, -(-context_len // block_size) :] = num_blocks - 1  # stale: a block of NaN
    query_lens = torch.tensor([query_len for query_len, _ in lengths], dtype=torch.int32)
    context_lens = torch.tensor([context_len for _, context_len in lengths], dtype=torch.int32)
    query_start = torch.cat((torch.zeros(1, dtype=torch.int32), query_lens.cumsum(0).int()))
    batch = ops.AttentionBatch(
        block_table=block_table.int().to(device),
        row_slots=row_slots.int().to(device),
        query_start=query_start.to(device),
        context_lens=context_lens.to(device),
        kv_slots=torch.zeros(int(query_lens.sum()), dtype=torch.int64, device=device),
        max_query_len=int(query_lens.max()),
        max_context_len=int(context_lens.max()),
        host_lengths=torch.stack((query_lens, context_lens)) if with_host_lengths else None,
    )
    q = random_tensor(int(query_lens.sum()), num_heads, head_dim, dtype=dtype, device=device)
    return Case(batch, q, k_cache, v_cache, keys, values, lengths)


def naive_attention(case: Case, scale: float, window: int | None) -> Tensor:
    outputs = []
    queries = iter(case.q.double().cpu())
    for (query_len, context_len), keys, values in zip(case.lengths, case.keys, case.values, strict=True):
        wide_keys, wide_values = keys.double().cpu(), values.double().cpu()
        for position in range(context_len - query_len, context_len):
            query = next(queries)
            if context_len == 0:
                outputs.append(torch.full_like(query, torch.nan))
                continue
            first = 0 if window is None else max(0, position - window + 1)
            heads = []
            for head in range(query.shape[0]):
                kv_head = head // (query.shape[0] // wide_keys.shape[1])
                weights = torch.softmax(wide_keys[first : position + 1, kv_head] @ query[head] * scale, 0)
                heads.append(weights @ wide_values[first : position + 1, kv_head])
            outputs.append(torch.stack(heads))
    return torch.stack(outputs)


def check(case: Case, scale: float = 0.3, window: int | None = None) -> None:
    actual = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, scale, window)
    assert actual.dtype == case.q.dtype
    assert_close(actual, naive_attention(case, scale, window), factor=2.0)


DECODES = [(1, 1), (1, 4), (1, 5), (1, 37)]
PREFILLS = [(6, 6), (1, 1), (5, 13), (33, 33)]
MIXED = [(1, 9), (1, 30), (7, 7), (1, 2), (4, 21), (1, 16), (1, 8)]
BATCHES = pytest.mark.parametrize("lengths", [DECODES, PREFILLS, MIXED], ids=["decode", "prefill", "mixed"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@BATCHES
def test_every_query_sees_its_own_context_and_no_more(
    lengths: list[tuple[int, int]], window: int | None, dtype: torch.dtype
) -> None:
    check(make_case(lengths, window=window, dtype=dtype), window=window)


@pytest.mark.parametrize("head_dim", [1, 7, 64, 80, 128])
@pytest.mark.parametrize("heads", [(1, 1), (6, 6), (6, 2), (5, 1)], ids=str)
@BATCHES
def test_heads_of_any_number_and_size(lengths: list[tuple[int, int]], heads: tuple[int, int], head_dim: int) -> None:
    check(make_case(lengths, heads=heads, head_dim=head_dim))


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@BATCHES
def test_blocks_of_any_size(lengths: list[tuple[int, int]], block_size: int) -> None:
    check(make_case(lengths, block_size=block_size))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("heads", "head_dim", "block_size", "dtype", "window"),
    [
        ((4, 2), 16, 4, torch.float32, None),
        ((4, 2), 16, 4, torch.float32, 1),
        ((4, 2), 16, 4, torch.bfloat16, 8),
        ((4, 2), 16, 1, torch.float16, 3),
        ((1, 1), 1, 5, torch.float32, None),
        ((6, 2), 7, 16, torch.float32, 8),
        ((5, 1), 80, 64, torch.bfloat16, None),
        ((6, 6), 64, 5, torch.float32, 3),
        ((6, 2), 128, 64, torch.float32, None),
    ],
    ids=str,
)
def test_what_runs_on_a_gpu_does_the_same(
    heads: tuple[int, int], head_dim: int, block_size: int, dtype: torch.dtype, window: int | None
) -> None:
    """Small and odd sizes; each is compiled anew."""
    for lengths in (DECODES, PREFILLS, MIXED):
        case = make_case(
            lengths, heads=heads, head_dim=head_dim, block_size=block_size, dtype=dtype, window=window, device="cuda"
        )
        check(case, scale=head_dim**-0.5, window=window)


@BATCHES
def test_lengths_are_read_from_the_tensors_where_the_host_does_not_know_them(lengths: list[tuple[int, int]]) -> None:
    check(make_case(lengths, with_host_lengths=False))


@BATCHES
def test_large_scores_do_not_overflow(lengths: list[tuple[int, int]]) -> None:
    check(make_case(lengths), scale=60.0)


@pytest.mark.parametrize("limit", [1, 300, 3000])
@pytest.mark.parametrize("window", [None, 5])
@BATCHES
def test_bounded_rounds_yield_the_same(
    lengths: list[tuple[int, int]], window: int | None, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_attention, "MAX_GATHERED_ELEMENTS", {"cpu": limit})
    check(make_case(lengths, window=window), window=window)


def test_the_order_of_requests_does_not_matter() -> None:
    case = make_case(MIXED)
    alone = []
    for row, (query_len, _) in enumerate(case.lengths):
        start = int(case.batch.query_start[row])
        batch = ops.AttentionBatch(
            block_table=case.batch.block_table,
            row_slots=case.batch.row_slots[row : row + 1],
            query_start=torch.tensor([0, query_len], dtype=torch.int32),
            context_lens=case.batch.context_lens[row : row + 1],
            kv_slots=case.batch.kv_slots[start : start + query_len],
            max_query_len=query_len,
            max_context_len=int(case.batch.context_lens[row]),
        )
        q = case.q[start : start + query_len]
        alone.append(ops.paged_attention(q, case.k_cache, case.v_cache, batch, 0.3, None))
    together = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.batch, 0.3, None)
    assert_close(together, torch.cat(alone))


def test_padding_rows_and_tokens_are_passed_over() -> None:
    padded = make_case([(1, 9), (1, 0), (3, 0), (2, 7), (1, 4), (1, 0)])
    real = [0, 5, 6, 7]
    actual = ops.paged_attention(padded.q, padded.k_cache, padded.v_cache, padded.batch, 0.3, None)
    is_real = torch.zeros(len(padded.q), dtype=torch.bool)
    is_real[real] = True
    expected = naive_attention(padded, 0.3, None)
    assert_close(actual[is_real], expected[is_real])
    more_tokens = torch.cat((padded.q, torch.full_like(padded.q[:3], torch.nan)))
    again = ops.paged_attention(more_tokens, padded.k_cache, padded.v_cache, padded.batch, 0.3, None)
    assert torch.equal(again[: len(padded.q)][is_real], actual[is_real])

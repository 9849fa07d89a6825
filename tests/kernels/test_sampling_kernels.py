"""Sampling's Triton kernels against their twins and definitions; what they take of a GPU; that they never wait for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.kernels import (
    reference_sampling,
    triton_logit_edits,
    triton_logprobs,
    triton_sampling,
    triton_threshold_search,
    triton_thresholds,
)
from tests.kernels.comparing import TRITON_DEVICE, no_waiting
from tests.kernels.compiling import check_launches
from tests.kernels.sampling_rows import IS_VALID, in_slots, odd_rows, random_slots

pytestmark = pytest.mark.usefixtures("poisoned_empty")
VOCAB_SIZES = [1, 1000, 4097, *(pytest.param(size, marks=pytest.mark.gpu) for size in (128_256, 151_936))]
DTYPES = [torch.float32, torch.bfloat16]
FILTERS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (7, 1.0, 0.0),
    (999, 1.0, 0.0),
    (1_000_000, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 0.1, 0.0),
    (0, 1e-9, 0.0),
    (0, 0.999999, 0.0),
    (0, 1.0, 0.05),
    (0, 1.0, 1.0),
    (50, 0.8, 0.001),
    (3, 0.999, 0.3),
]


@pytest.mark.parametrize("temperature", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("is_filtered", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_tokens_equal_the_twins(vocab_size: int, dtype: torch.dtype, is_filtered: bool, temperature: float) -> None:
    logits, slots = odd_rows(vocab_size, dtype), random_slots(8)
    seeds, positions = torch.randint(2**62, (8,)), torch.randint(2**30, (8,)).int()
    parameters = (in_slots(slots, torch.full((8,), temperature)), in_slots(slots, seeds), in_slots(slots, positions))
    thresholds = logits.float().nan_to_num(0.0).quantile(0.9, dim=1) if is_filtered and vocab_size < 10_000 else None
    tokens, is_valid = triton_sampling.sample_tokens(logits, slots, *parameters, thresholds)
    twins, _ = reference_sampling.sample_tokens(logits, slots, *parameters, thresholds)
    assert is_valid.tolist() == IS_VALID if vocab_size > 1 else is_valid.tolist()[:4] == [True] * 4
    assert ((tokens >= 0) & (tokens < vocab_size)).all()
    tokens, twins, logits = tokens[:5], twins[:5], logits[:5].double()
    if temperature == 0:
        assert torch.equal(tokens, twins)
        return
    scores = logits / temperature + reference_sampling.gumbel_noise(seeds[:5], positions[:5], vocab_size).to(logits)
    if thresholds is not None:
        scores[logits < thresholds[:5, None]] = -torch.inf
    best = scores.gather(1, twins[:, None])
    # Where two scores are as close as float32's rounding, either may win.
    assert (best - scores.gather(1, tokens[:, None]) < 1e-5 * best.abs().clamp_min(1.0)).all()


def test_greedy_and_random_rows_share_a_batch() -> None:
    logits, slots = torch.randn(6, 5000).to(TRITON_DEVICE), random_slots(6)
    temperatures = torch.tensor([0.0, 1.0, 0.0, 0.5, 2.0, 0.0])
    parameters = (in_slots(slots, temperatures), in_slots(slots, torch.arange(6)), in_slots(slots, torch.arange(6).int()))
    tokens, _ = triton_sampling.sample_tokens(logits, slots, *parameters, None)
    assert torch.equal(tokens, reference_sampling.sample_tokens(logits, slots, *parameters, None)[0])
    assert torch.equal(tokens[[0, 2, 5]], logits[[0, 2, 5]].argmax(dim=1))


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_draws_follow_the_distribution(temperature: float) -> None:
    num_draws, vocab_size = 60_000, 5000
    logits = torch.randn(vocab_size, device="cuda") * 2.5
    slots = torch.arange(num_draws, device="cuda", dtype=torch.int32)
    tokens, _ = triton_sampling.sample_tokens(
        logits.bfloat16().expand(num_draws, -1),
        slots,
        torch.full((num_draws,), temperature, device="cuda"),
        torch.full((num_draws,), 2**40 + 99, device="cuda"),
        slots,
        None,
    )
    expected = torch.softmax(logits.bfloat16().double() / temperature, 0) * num_draws
    counts = torch.bincount(tokens, minlength=vocab_size).double()
    is_common = expected >= 20
    counts = torch.cat((counts[is_common], counts[~is_common].sum(0, keepdim=True)))
    expected = torch.cat((expected[is_common], expected[~is_common].sum(0, keepdim=True)))
    degrees = len(expected) - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5


def check_thresholds(logits: Tensor, thresholds: Tensor, settings: tuple[int, float, float], temperature: float) -> None:
    """By the filters' definitions in float64, of one row; top_p's share is known to float32's rounding."""
    top_k, top_p, min_p = settings
    base = reference_sampling.logit_thresholds_by_slot(
        logits[None], *(torch.tensor([x], device=logits.device) for x in (0, temperature, top_k, 1.0, min_p))
    )
    logits = logits.double()
    tempered = logits / temperature
    kept = logits >= thresholds
    if top_p == 1.0:
        assert torch.equal(kept, logits >= base)
        return
    weights = torch.where(logits >= base, (tempered - tempered.max()).exp(), 0.0)
    assert not (kept & (logits < base)).any()
    share, share_above = weights[kept].sum() / weights.sum(), weights[logits > logits[kept].min()].sum() / weights.sum()
    assert share >= top_p - 2e-6
    assert share_above < top_p + 2e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("vocab_size", "list_size"),
    [
        (1, 8192),
        (1000, 256),
        (2049, 8192),
        *(pytest.param(*sizes, marks=pytest.mark.gpu) for sizes in ((4097, 256), (128_256, 8192), (151_936, 8192))),
    ],
)
def test_filters_keep_what_the_definitions_keep(
    vocab_size: int, dtype: torch.dtype, list_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_thresholds, "LIST_SIZE", list_size)
    if TRITON_DEVICE == "cpu":
        monkeypatch.setattr(triton_thresholds, "TILE_SIZE", 1024)
    temperature = 1.7
    for i_row, row_logits in enumerate(odd_rows(vocab_size, dtype)[:5]):
        filters = FILTERS if i_row == 0 else FILTERS[i_row::3]
        logits, slots = row_logits.expand(len(filters), -1), random_slots(len(filters))
        top_k, top_p, min_p = (in_slots(slots, torch.tensor(column)) for column in zip(*filters, strict=True))
        temperatures = in_slots(slots, torch.full((len(filters),), temperature))
        thresholds = triton_thresholds.logit_thresholds_by_slot(logits, slots, temperatures, top_k.int(), top_p, min_p)
        for row, settings in enumerate(filters):
            check_thresholds(logits[row], thresholds[row], settings, temperature)


def test_rows_that_nothing_filters_have_no_threshold() -> None:
    logits, slots = odd_rows(1000, torch.float32), random_slots(8)
    temperatures = torch.tensor([0.0, 1, 1, 0, 0, 1, 1, 1])
    top_k, top_p, min_p = torch.tensor([5, 0, 1000, 5, 5, 5, 5, 5]).int(), torch.ones(8), torch.zeros(8)
    top_p[4:] = 0.5
    parameters = [in_slots(slots, x) for x in (temperatures, top_k, top_p, min_p)]
    assert triton_thresholds.logit_thresholds_by_slot(logits, slots, *parameters).tolist() == [-torch.inf] * 8
    assert reference_sampling.logit_thresholds_by_slot(logits, slots, *parameters).tolist() == [-torch.inf] * 8


@pytest.mark.parametrize("vocab_size", [4001, pytest.param(151_936, marks=pytest.mark.gpu)])
def test_a_row_fares_alike_in_any_batch(vocab_size: int) -> None:
    num_rows = 7 if TRITON_DEVICE == "cpu" else 100
    logits, slots = torch.randn(num_rows, vocab_size).to(TRITON_DEVICE, torch.bfloat16) * 2, random_slots(num_rows)
    temperatures, top_p = torch.rand(num_rows) + 0.3, torch.rand(num_rows)
    top_k, min_p = torch.randint(0, 200, (num_rows,)).int(), torch.rand(num_rows) * 0.01
    temperatures[1], top_k[2:4], top_p[3] = 0.0, 0, 1.0
    filters = [in_slots(slots, x) for x in (temperatures, top_k, top_p, min_p)]
    seeds, positions = in_slots(slots, torch.arange(num_rows)), in_slots(slots, torch.arange(num_rows).int())
    thresholds = triton_thresholds.logit_thresholds_by_slot(logits, slots, *filters)
    tokens, _ = triton_sampling.sample_tokens(logits, slots, filters[0], seeds, positions, thresholds)
    for row in range(num_rows):
        own, slot = logits[row : row + 1].clone(), slots[row : row + 1]
        alone = triton_thresholds.logit_thresholds_by_slot(own, slot, *filters)
        assert alone[0] == thresholds[row]
        assert triton_sampling.sample_tokens(own, slot, filters[0], seeds, positions, alone)[0] == tokens[row]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_edits_equal_their_twins(vocab_size: int) -> None:
    logits = torch.randn(5, vocab_size + 8, device=TRITON_DEVICE)[:, :vocab_size]
    counts = torch.randint(0, 6, (7, vocab_size), dtype=torch.int32) * (torch.rand(7, vocab_size) < 0.2)
    counts = counts.to(TRITON_DEVICE, torch.int32)
    rows, count_rows = torch.tensor([4, 0, 2], device=TRITON_DEVICE), torch.tensor([6, 1, 0], device=TRITON_DEVICE)
    penalties = torch.tensor([[1.3, 0.6, 1.0], [0.5, -1.0, 0.7], [0.25, 2.0, -0.5]], device=TRITON_DEVICE)
    token_ids = torch.tensor([0, vocab_size - 1, vocab_size // 2], device=TRITON_DEVICE)
    values = torch.tensor([2.5, -torch.inf, -1.0], device=TRITON_DEVICE)
    results = []
    for ops in (triton_logit_edits, reference_sampling):
        own_logits, own_counts = logits.clone(), counts.clone()
        ops.apply_penalties(own_logits, rows, own_counts, count_rows, *penalties)
        ops.add_to_logits(own_logits, rows, token_ids, values)
        ops.count_tokens(own_counts, count_rows, token_ids)
        results.append((own_logits, own_counts))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("num_top", [0, 1, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_logprobs_equal_their_twins(vocab_size: int, dtype: torch.dtype, num_top: int) -> None:
    num_top = min(num_top, vocab_size)
    logits, chosen = odd_rows(vocab_size, dtype)[:5], torch.randint(vocab_size, (5,)).to(TRITON_DEVICE)
    ids, logprobs, ranks = triton_logprobs.top_logprobs(logits, chosen, num_top)
    expected = torch.log_softmax(logits.double(), 1)
    torch.testing.assert_close(logprobs.double(), expected.gather(1, ids.long()), rtol=1e-6, atol=2e-5)
    assert torch.equal(ids[:, 0].long(), chosen)
    assert torch.equal(expected.gather(1, ids[:, 1:].long()), expected.topk(num_top, dim=1).values)
    assert torch.equal(ranks, reference_sampling.top_logprobs(logits, chosen, 0)[2])


@pytest.mark.gpu
def test_sampling_is_captured_in_a_graph_and_never_waits() -> None:
    logits, slots = torch.randn(9, 151_936, device="cuda", dtype=torch.bfloat16), random_slots(9)
    temperatures, top_k = in_slots(slots, torch.rand(9)), in_slots(slots, torch.arange(9).int())
    top_p, min_p = in_slots(slots, torch.rand(9)), in_slots(slots, torch.rand(9) * 0.1)
    seeds, positions = in_slots(slots, torch.arange(9)), in_slots(slots, torch.arange(9).int())

    def sample() -> tuple[Tensor, ...]:
        thresholds = triton_thresholds.logit_thresholds_by_slot(logits, slots, temperatures, top_k, top_p, min_p)
        tokens, is_valid = triton_sampling.sample_tokens(logits, slots, temperatures, seeds, positions, thresholds)
        return tokens, is_valid, *triton_logprobs.top_logprobs(logits, tokens, 5)

    sample()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample()
    logits.copy_(torch.randn_like(logits))
    positions.add_(1)
    graph.replay()
    with no_waiting():
        eager = sample()
    for from_graph, expected in zip(captured, eager, strict=True):
        assert torch.equal(from_graph, expected)


def launch_everything() -> None:
    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    int32, int64, float32 = torch.int32, torch.int64, torch.float32
    for vocab_size, dtype in ((151_936, torch.bfloat16), (4097, float32)):
        logits, slots, ids = empty(dtype, 4, vocab_size), empty(int32, 4), empty(int64, 4)
        floats, ints = empty(float32, 9), empty(int32, 9)
        thresholds = triton_thresholds.logit_thresholds_by_slot(logits, slots, floats, ints, floats, floats)
        for kept in (thresholds, None):
            triton_sampling.sample_tokens(logits, slots, floats, empty(int64, 9), ints, kept)
        triton_logprobs.top_logprobs(logits, ids, 20)
        editable, counts, values = logits.float(), empty(int32, 4, vocab_size), empty(float32, 4)
        triton_logit_edits.apply_penalties(editable, ids, counts, ids, values, values, values)
        triton_logit_edits.add_to_logits(editable, ids, ids, values)
        triton_logit_edits.count_tokens(counts, ids, ids)


def test_compiles_for_every_architecture() -> None:
    compiled = check_launches(launch_everything)
    names = {launch.kernel for launch in compiled}
    assert {"_best_of_tile_kernel", "_count_kernel", triton_threshold_search.search_kernel.__name__} <= names
    for launch in compiled:
        if launch.kernel == "_best_of_tile_kernel":
            assert "lg2.approx" in launch.ptx
            assert "mul.wide.u32" in launch.ptx

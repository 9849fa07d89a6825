"""Sampling against float64 and plain loops: filters, penalties, draws, log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from penstock.kernels import ops, reference_sampling
from tests.kernels.comparing import DEVICES
from tests.kernels.naive_sampling import naive_kept, naive_penalized

pytestmark = pytest.mark.usefixtures("poisoned_empty")
VOCAB_SIZES = [1, 2, 97, 1000, 4001]


FILTERS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (7, 1.0, 0.0),
    (1500, 1.0, 0.0),
    (1500, 0.95, 0.0),
    (10_000, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 0.1, 0.0),
    (0, 1e-9, 0.0),
    (0, 1.0, 0.05),
    (0, 1.0, 1.0),
    (20, 0.8, 0.02),
    (3, 0.999, 0.3),
]


def thresholds_of(logits: Tensor, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Row r's parameters are those of slot r."""
    return ops.logit_thresholds_by_slot(logits, _own_slots(logits), temperatures, top_k, top_p, min_p)


def draws(logits: Tensor, temperatures: Tensor, thresholds: Tensor | None, seeds: Tensor, positions: Tensor) -> Tensor:
    """Row r's parameters are those of slot r."""
    return ops.sample_tokens(logits, _own_slots(logits), temperatures, seeds, positions, thresholds)[0]


def _own_slots(logits: Tensor) -> Tensor:
    return torch.arange(len(logits), dtype=torch.int32, device=logits.device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_filters_keep_what_the_definitions_keep(vocab_size: int, tied: bool, device: str) -> None:
    rows = [(*settings, temperature) for settings in FILTERS for temperature in (0.25, 1.0, 5.0)]
    logits = torch.randn(len(rows), vocab_size) * 4
    if tied:
        logits = logits.round()
    top_k, top_p, min_p, temperatures = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    thresholds = thresholds_of(logits.to(device), temperatures, top_k.int(), top_p, min_p)
    kept = (logits.to(device) >= thresholds[:, None]).cpu()
    for row, settings in enumerate(rows):
        expected, margin = naive_kept(logits[row].tolist(), settings[3], *settings[:3])
        actual = set(kept[row].nonzero().flatten().tolist())
        assert actual == expected or (margin < 1e-5 and len(actual ^ expected) <= 1), settings


@pytest.mark.parametrize("device", DEVICES)
def test_forbidden_tokens_stay_forbidden_under_filters(device: str) -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.5, -torch.inf, 0.0]], device=device).repeat(200, 1)
    ones, seeds = torch.ones(200, device=device), torch.arange(200, device=device)
    for top_k, top_p in ((4, 1.0), (0, 0.99999)):
        thresholds = thresholds_of(logits, ones, ones.int() * top_k, ones * top_p, ones * 0)
        tokens = draws(logits, ones, thresholds, seeds, ones.int())
        assert set(tokens.tolist()) == {0, 2, 4}


@pytest.mark.parametrize("device", DEVICES)
def test_draws_follow_the_distribution(device: str) -> None:
    num_draws, vocab_size, temperature = 40_000, 11, 1.7
    logits = torch.randn(vocab_size, dtype=torch.float64) * 2
    expected = torch.softmax(logits / temperature, 0) * num_draws
    tokens = draws(
        logits.float().expand(num_draws, -1).contiguous().to(device),
        torch.full((num_draws,), temperature, device=device),
        None,
        torch.full((num_draws,), 99, device=device),
        torch.arange(num_draws, device=device),
    )
    counts = torch.bincount(tokens.cpu(), minlength=vocab_size)
    assert ((counts - expected) ** 2 / expected).sum() < 23.2  # chi-square with 10 degrees of freedom at the 1% level


@pytest.mark.parametrize("device", DEVICES)
def test_draws_under_a_threshold_follow_what_is_left(device: str) -> None:
    num_draws = 20_000
    logits = torch.tensor([2.0, -1.0, 1.0, 0.0, -3.0])
    tokens = draws(
        logits.expand(num_draws, -1).contiguous().to(device),
        torch.ones(num_draws, device=device),
        torch.zeros(num_draws, device=device),
        torch.arange(num_draws, device=device),
        torch.zeros(num_draws, dtype=torch.int64, device=device),
    )
    counts = torch.bincount(tokens.cpu(), minlength=5)
    expected = torch.softmax(logits[[0, 2, 3]].double(), 0) * num_draws
    assert counts[[1, 4]].tolist() == [0, 0]
    assert ((counts[[0, 2, 3]] - expected) ** 2 / expected).sum() < 9.21  # 2 degrees of freedom at the 1% level


@pytest.mark.parametrize("device", DEVICES)
def test_a_draw_does_not_depend_on_its_batch(device: str) -> None:
    num_rows, vocab_size = 9, 513
    logits = torch.randn(num_rows, vocab_size).to(device)
    temperatures = torch.rand(num_rows).to(device) + 0.1
    seeds, positions = torch.randint(2**62, (num_rows,)).to(device), torch.randint(4000, (num_rows,)).to(device)
    together = draws(logits, temperatures, None, seeds, positions)
    for row in range(num_rows):
        own = slice(row, row + 1)
        alone = draws(logits[own], temperatures[own], None, seeds[own], positions[own])
        assert int(alone) == int(together[row])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_take_their_parameters_from_their_slots(dtype: torch.dtype, device: str) -> None:
    logits, row_slots = (torch.randn(3, 1500) * 3).to(device, dtype), torch.tensor([4, 0, 1], dtype=torch.int32, device=device)
    own = row_slots.long()
    temperatures, top_p = torch.tensor([0.7, 0.0, 9.0, 9.0, 2.0], device=device), torch.rand(5).to(device)
    top_k, min_p = torch.full((5,), 40, dtype=torch.int32, device=device), torch.full((5,), 1e-4, device=device)
    seeds, positions = torch.arange(5, device=device), torch.arange(5, dtype=torch.int32, device=device) * 7
    thresholds = ops.logit_thresholds_by_slot(logits, row_slots, temperatures, top_k, top_p, min_p)
    tokens, is_valid = ops.sample_tokens(logits, row_slots, temperatures, seeds, positions, thresholds)
    assert is_valid.tolist() == [True] * 3

    assert torch.equal(thresholds, thresholds_of(logits, temperatures[own], top_k[own], top_p[own], min_p[own]))
    assert torch.equal(tokens, draws(logits, temperatures[own], thresholds, seeds[own], positions[own]))
    assert torch.isfinite(thresholds).tolist() == [True, True, False]
    assert tokens[2] == logits[2].argmax()


@pytest.mark.parametrize("rows_per_round", [1, 2, 5])
def test_rounds_of_rows_change_nothing(rows_per_round: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, noughts = torch.randn(5, 1500) * 2, torch.zeros(5)
    temperatures, top_p = torch.rand(5) + 0.2, torch.tensor([0.3, 0.99, 1.0, 0.7, 0.9])
    counts = torch.randint(0, 4, (5, 1500), dtype=torch.int32)

    def run() -> list[torch.Tensor]:
        thresholds = thresholds_of(logits, temperatures, noughts.int(), top_p, noughts)
        tokens = draws(logits, temperatures, thresholds, torch.arange(5), torch.arange(5))
        penalized = logits.clone()
        ops.apply_penalties(penalized, torch.arange(5), counts, torch.arange(5), temperatures, temperatures, temperatures)
        return [thresholds, tokens, penalized]

    expected = run()
    monkeypatch.setattr(reference_sampling, "MAX_ROUND_ELEMENTS", rows_per_round * 1500)
    for actual, whole in zip(run(), expected, strict=True):
        assert torch.equal(actual, whole)


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_rows_take_the_lowest_id_among_equals(device: str) -> None:
    logits = torch.zeros(3, 1001, device=device)
    logits[1, [400, 900]] = 1.0
    logits[2, 1000] = 0.5
    noughts = torch.zeros(3, device=device)
    assert draws(logits, noughts, None, noughts.long(), noughts.int()).tolist() == [0, 400, 1000]


@pytest.mark.parametrize("device", DEVICES)
def test_penalties_equal_their_definitions(device: str) -> None:
    vocab_size = 61
    logits = torch.randn(5, vocab_size) * 3
    prompts = [[3, 3, 9, 60], [0], []]
    outputs: list[list[int]] = [[9, 9, 9, 1], [], [0, 5, 5]]
    rows, count_rows = [4, 0, 2], [1, 3, 0]
    settings = [(1.3, 0.5, 0.25), (0.6, -1.0, 2.0), (1.0, 0.7, -0.5)]
    counts = torch.full((4, vocab_size), 99, dtype=torch.int32)
    expected = logits.double()
    for row, count_row, prompt, output, (repetition, frequency, presence) in zip(
        rows, count_rows, prompts, outputs, settings, strict=True
    ):
        for token_id in range(vocab_size):
            counts[count_row, token_id] = 2 * output.count(token_id) + (token_id in prompt)
        values = naive_penalized(
            expected[row].tolist(), prompt, output, repetition=repetition, frequency=frequency, presence=presence
        )
        expected[row] = torch.tensor(values, dtype=torch.float64)
    actual = logits.to(device)
    columns = [torch.tensor(column, device=device) for column in zip(*settings, strict=True)]
    ops.apply_penalties(
        actual, torch.tensor(rows, device=device), counts.to(device), torch.tensor(count_rows, device=device), *columns
    )
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(actual[[1, 3]].cpu(), logits[[1, 3]])


@pytest.mark.parametrize("device", DEVICES)
def test_counted_tokens_are_output_tokens(device: str) -> None:
    counts = torch.zeros(3, 10, dtype=torch.int32, device=device)
    counts[2, 4] = 1
    for tokens in ([4, 7], [4, 4]):
        ops.count_tokens(counts, torch.tensor([2, 0], device=device), torch.tensor(tokens, device=device))
    assert counts.nonzero().tolist() == [[0, 4], [0, 7], [2, 4]]
    assert counts[0, 4] == counts[0, 7] == 2
    assert counts[2, 4] == 5


@pytest.mark.parametrize("device", DEVICES)
def test_single_logits_can_be_raised_and_forbidden(device: str) -> None:
    logits = torch.zeros(2, 3, device=device)
    rows, token_ids = torch.tensor([1, 0, 1], device=device), torch.tensor([2, 2, 0], device=device)
    ops.add_to_logits(logits, rows, token_ids, torch.tensor([2.5, -torch.inf, -1.0], device=device))
    assert logits.tolist() == [[0, 0, -math.inf], [-1, 0, 2.5]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_top_logprobs_are_the_log_softmax_and_its_order(num_top: int, device: str) -> None:
    logits = torch.randn(7, 203) * 5
    expected = torch.log_softmax(logits.double(), 1)
    chosen = torch.tensor([0, 202, 5, 17, 100, 3, 9])
    chosen[6] = int(logits[6].argmax())
    ids, logprobs, ranks = (x.cpu() for x in ops.top_logprobs(logits.to(device), chosen.to(device), num_top))
    assert ids.shape == logprobs.shape == (7, 1 + num_top)
    torch.testing.assert_close(logprobs.double(), expected.gather(1, ids.long()), rtol=0, atol=1e-5)
    assert ids[:, 0].tolist() == chosen.tolist()
    order = expected.argsort(1, descending=True)
    assert ids[:, 1:].tolist() == order[:, :num_top].tolist()
    assert ranks.tolist() == [order[row].tolist().index(int(chosen[row])) + 1 for row in range(7)]
    assert ranks[6] == 1


def test_ranks_of_tied_tokens_are_shared() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]]).expand(4, -1)
    _, _, ranks = ops.top_logprobs(logits, torch.arange(4), 2)
    assert ranks.tolist() == [3, 1, 1, 4]

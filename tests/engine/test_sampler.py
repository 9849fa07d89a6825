"""Sampling a mixed batch against the same steps on Python's floats, row by row; and that unused features are not computed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from penstock.engine.plan import StartedRequest
from penstock.engine.sampler import Sampled, SampledRow, note_tokens, plan_sampling, sample
from penstock.engine.slots import DeviceSlots, has_penalties, make_slot_info, started_arrays
from penstock.engine.staging import upload
from penstock.engine.token_counts import counted_arrays
from penstock.ipc.messages import Sampling
from penstock.kernels import ops
from tests.kernels.naive_sampling import naive_kept, naive_penalized

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
VOCAB_SIZE = 83
EOS_TOKEN_ID = 4
PROMPT, OUTPUT = [1, 2, 2, 7, 80], [7, 7, 9]

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.7},
    {"temperature": 2.0, "min_p": 0.2},
    {"temperature": 0.9, "top_k": 12, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 2.5},
    {"temperature": 0.8, "frequency_penalty": 1.1, "presence_penalty": -0.4, "top_k": 20},
    {"temperature": 0.0, "logit_bias": {11: 30.0, 12: 31.0}},
    {"temperature": 1.0, "logit_bias": {3: 4.0, EOS_TOKEN_ID: 9.0}, "min_tokens": 9},
    {"temperature": 1.0, "logit_bias": {3: 4.0, EOS_TOKEN_ID: 9.0}, "min_tokens": 3},
    {"temperature": 1e-6, "top_p": 0.5, "frequency_penalty": 2.0, "logit_bias": {7: 8.0}},
]


class Bench:
    """A request per settings, each in a slot of its own and with the same prompt and output behind it."""

    def __init__(self, settings: list[dict[str, Any]], device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.samplings = [Sampling(**{"seed": 1000 + i, "max_tokens": 99, **fields}) for i, fields in enumerate(settings)]
        self.slots = DeviceSlots(
            max_num_seqs=len(settings) + 2, max_blocks=1, num_groups=1, vocab_size=VOCAB_SIZE, device=self.device
        )
        started = [
            StartedRequest(slot=slot + 1, sampling=sampling, prompt_token_ids=PROMPT, output_token_ids=OUTPUT)
            for slot, sampling in enumerate(self.samplings)
        ]
        count_rows = [
            self.slots.token_counts.take_row(request.slot) if has_penalties(request.sampling) else None for request in started
        ]
        self.slots.start(upload(started_arrays(started), self.device))
        counted = [(request, row) for request, row in zip(started, count_rows, strict=True) if row is not None]
        if counted:
            self.slots.token_counts.reset(upload(counted_arrays(counted, VOCAB_SIZE), self.device))
        self.rows = [
            SampledRow(
                request.slot,
                make_slot_info(request, num_groups=1, vocab_size=VOCAB_SIZE, eos_token_ids=[EOS_TOKEN_ID], count_row=row),
                0,
                len(OUTPUT),
            )
            for request, row in zip(started, count_rows, strict=True)
        ]

    def sample(self, logits: torch.Tensor, rows: list[SampledRow] | None = None) -> Sampled:
        plan = plan_sampling(self.rows if rows is None else rows)
        arrays = upload(plan.arrays, self.device)
        sampled = sample(logits.clone().to(self.device), plan, arrays, self.slots)
        note_tokens(sampled, plan, arrays, self.slots)
        return sampled


def naive_token(logits: list[float], sampling: Sampling) -> int:
    """One token, by the steps in their order."""
    logits = naive_penalized(
        logits,
        PROMPT,
        OUTPUT,
        repetition=sampling.repetition_penalty,
        frequency=sampling.frequency_penalty,
        presence=sampling.presence_penalty,
    )
    for token_id, bias in sampling.logit_bias.items():
        logits[token_id] += bias
    if len(OUTPUT) < sampling.min_tokens:
        logits[EOS_TOKEN_ID] = -math.inf
    if sampling.temperature < 1e-5:
        return logits.index(max(logits))
    kept, _ = naive_kept(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    noise = ops.gumbel_noise(torch.tensor([sampling.seed]), torch.tensor([len(OUTPUT)]), VOCAB_SIZE)[0].tolist()
    return max(kept, key=lambda token_id: logits[token_id] / sampling.temperature + noise[token_id])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("round_number", range(5))
def test_every_row_of_a_mixed_batch_takes_its_own_steps_in_order(round_number: int, device: str) -> None:
    torch.manual_seed(round_number)
    bench = Bench(SETTINGS, device)
    logits = torch.randn(len(SETTINGS), VOCAB_SIZE) * 3
    sampled = bench.sample(logits)
    expected = [naive_token(row, sampling) for row, sampling in zip(logits.tolist(), bench.samplings, strict=True)]
    assert sampled.token_ids.tolist() == expected
    assert sampled.is_valid.all()
    assert bench.slots.last_token.tolist() == [0, *expected, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_alone_draws_what_it_draws_among_others(device: str) -> None:
    bench = Bench(SETTINGS, device)
    logits = torch.randn(len(SETTINGS), VOCAB_SIZE) * 2
    together = Bench(SETTINGS, device).sample(logits).token_ids.tolist()
    alone = [int(bench.sample(logits[i : i + 1], [row]).token_ids) for i, row in enumerate(bench.rows)]
    assert alone == together


def test_sampled_tokens_are_counted_where_there_are_penalties() -> None:
    bench = Bench([{"temperature": 0.0}, {"temperature": 0.0, "presence_penalty": 5.0}])
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, 20], logits[:, 30] = 3.0, 2.0
    tokens = [bench.sample(logits).token_ids.tolist() for _ in range(3)]
    assert tokens == [[20, 20], [20, 30], [20, 0]]


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        ({"temperature": 0.0}, {"argmax"}),
        ({"temperature": 0.7}, {"sample_gumbel"}),
        ({"temperature": 0.7, "top_k": VOCAB_SIZE, "top_p": 1.0}, {"sample_gumbel"}),
        ({"temperature": 0.0, "top_k": 3, "top_p": 0.5}, {"argmax"}),
        ({"temperature": 0.7, "top_p": 0.5}, {"sample_gumbel", "logit_thresholds"}),
        ({"temperature": 0.0, "presence_penalty": 0.1}, {"argmax", "apply_penalties", "count_tokens"}),
        ({"temperature": 0.0, "logit_bias": {1: 1.0}}, {"argmax", "add_to_logits"}),
        ({"temperature": 0.0, "min_tokens": len(OUTPUT) + 1}, {"argmax", "add_to_logits"}),
        ({"temperature": 0.0, "min_tokens": len(OUTPUT)}, {"argmax"}),
        ({"temperature": 0.0, "logprobs": 0}, {"argmax", "top_logprobs"}),
    ],
    ids=str,
)
def test_only_what_a_request_uses_is_computed(
    settings: dict[str, Any], used: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: set[str] = set()

    def watch(name: str) -> None:
        original = getattr(ops, name)

        def watched(*args: Any) -> Any:
            called.add(name)
            return original(*args)

        monkeypatch.setattr(ops, name, watched)

    for name in (
        "argmax",
        "sample_gumbel",
        "logit_thresholds",
        "apply_penalties",
        "count_tokens",
        "add_to_logits",
        "top_logprobs",
    ):
        watch(name)
    Bench([settings, settings]).sample(torch.randn(2, VOCAB_SIZE))
    assert called == used


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_without_finite_logits_are_marked(bad: float) -> None:
    bench = Bench(SETTINGS[:4])
    logits = torch.randn(4, VOCAB_SIZE)
    logits[2, 50] = bad
    logits[3] = -torch.inf
    assert bench.sample(logits).is_valid.tolist() == [True, True, False, False]


def test_logprobs_come_from_untouched_logits() -> None:
    bench = Bench([{"temperature": 0.0, "logit_bias": {6: 100.0}, "repetition_penalty": 3.0, "logprobs": 2}])
    logits = torch.randn(1, VOCAB_SIZE)
    sampled = bench.sample(logits)
    assert sampled.token_ids.tolist() == [6]
    assert sampled.logprobs is not None
    expected = torch.log_softmax(logits.double(), 1)[0, sampled.logprobs.token_ids[0].long()]
    assert sampled.logprobs.logprobs[0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)

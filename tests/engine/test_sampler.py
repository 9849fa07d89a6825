"""Sampling a mixed batch against the same steps on Python's floats, row by row; and that unused features are not computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from penstock.engine.plan import StartedRequest
from penstock.engine.sampler import (
    SpecialRow,
    TopLogprobs,
    count_tokens,
    draw,
    edited_logits,
    plan_special_rows,
    report,
    reported_logits,
)
from penstock.engine.slots import has_penalties, make_slot_info
from penstock.engine.staging import upload
from penstock.engine.step_inputs import pack_started
from penstock.engine.token_counts import TokenCounts, counted_arrays
from penstock.ipc.messages import Sampling
from penstock.kernels import ops, reference_sampling
from penstock.kernels.step_state import StepUpdates, make_slot_state, make_step_tensors
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


@dataclass
class Sampled:
    """What a row of every request yielded."""

    token_ids: torch.Tensor
    is_valid: torch.Tensor
    logprobs: TopLogprobs | None


class Bench:
    """A request per settings, each in a slot of its own and with the same prompt and output behind it."""

    def __init__(self, settings: list[dict[str, Any]], device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.samplings = [Sampling(**{"seed": 1000 + i, "max_tokens": 99, **fields}) for i, fields in enumerate(settings)]
        num_slots = len(settings) + 2
        self.state = make_slot_state(num_slots, 1, 1, self.device)
        self.step = make_step_tensors(self.state, num_slots, num_slots, self.device)
        self.counts = TokenCounts(num_slots, VOCAB_SIZE, self.device)
        started = [
            StartedRequest(slot=slot + 1, sampling=sampling, prompt_token_ids=PROMPT, output_token_ids=OUTPUT)
            for slot, sampling in enumerate(self.samplings)
        ]
        rows = [self.counts.take_row(request.slot) if has_penalties(request.sampling) else None for request in started]
        words = upload({"words": pack_started(started)}, self.device)["words"]
        updates = StepUpdates(words=words, num_blocks=0, num_started=len(started), num_rows=0, num_token_ids=0, first_token=0)
        ops.apply_step_updates(self.state, self.step, updates)
        self.state.output_positions.fill_(len(OUTPUT))
        counted = [(request, row) for request, row in zip(started, rows, strict=True) if row is not None]
        if counted:
            self.counts.reset(upload(counted_arrays(counted, VOCAB_SIZE), self.device))
        self.infos = [
            make_slot_info(request, vocab_size=VOCAB_SIZE, eos_token_ids=[EOS_TOKEN_ID], count_row=row)
            for request, row in zip(started, rows, strict=True)
        ]

    def sample(self, logits: torch.Tensor, requests: Sequence[int] | None = None) -> Sampled:
        """A row of logits for each of the requests, by default for all."""
        chosen = range(len(self.infos)) if requests is None else requests
        slots = torch.tensor([request + 1 for request in chosen], device=self.device)
        infos = [self.infos[request] for request in chosen]
        special = [
            SpecialRow(row, request + 1, info, len(OUTPUT))
            for row, (request, info) in enumerate(zip(chosen, infos, strict=True))
            if len(OUTPUT) < info.special_until
        ]
        plan = plan_special_rows(special, has_filters=any(info.has_filters for info in infos))
        arrays = upload(plan.arrays, self.device)
        logits = logits.clone().to(self.device)
        raw = reported_logits(logits, plan, arrays)
        edited = edited_logits(logits, plan, arrays, self.state, self.counts)
        token_ids, is_valid = draw(edited, slots, self.state, has_filters=plan.has_filters)
        count_tokens(token_ids, plan, arrays, self.counts)
        return Sampled(token_ids, is_valid, None if raw is None else report(raw, token_ids, plan, arrays))


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
    noise = reference_sampling.gumbel_noise(torch.tensor([sampling.seed]), torch.tensor([len(OUTPUT)]), VOCAB_SIZE)[0].tolist()
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


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_alone_draws_what_it_draws_among_others(device: str) -> None:
    bench = Bench(SETTINGS, device)
    logits = torch.randn(len(SETTINGS), VOCAB_SIZE) * 2
    together = Bench(SETTINGS, device).sample(logits).token_ids.tolist()
    alone = [int(bench.sample(logits[i : i + 1], [i]).token_ids) for i in range(len(SETTINGS))]
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
        ({"temperature": 0.0}, {"sample_tokens"}),
        ({"temperature": 0.7}, {"sample_tokens"}),
        ({"temperature": 0.7, "top_k": VOCAB_SIZE, "top_p": 1.0}, {"sample_tokens"}),
        ({"temperature": 0.0, "top_k": 3, "top_p": 0.5}, {"sample_tokens"}),
        ({"temperature": 0.7, "top_p": 0.5}, {"sample_tokens", "logit_thresholds_by_slot"}),
        ({"temperature": 0.0, "presence_penalty": 0.1}, {"sample_tokens", "apply_penalties", "count_tokens"}),
        ({"temperature": 0.0, "logit_bias": {1: 1.0}}, {"sample_tokens", "add_to_logits"}),
        ({"temperature": 0.0, "min_tokens": len(OUTPUT) + 1}, {"sample_tokens", "add_to_logits"}),
        ({"temperature": 0.0, "min_tokens": len(OUTPUT)}, {"sample_tokens"}),
        ({"temperature": 0.0, "logprobs": 0}, {"sample_tokens", "top_logprobs"}),
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
        "sample_tokens",
        "logit_thresholds_by_slot",
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

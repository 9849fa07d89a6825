"""The runner against the model computed whole and anew for every token, and against itself in other batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from penstock.engine import prompt_logprobs
from penstock.engine.plan import NO_TOKEN
from tests.engine.runner_driver import DRAWN, Driver, Request, make_prompts, requests_for, sampling
from tests.engine.tiny_model import EOS_TOKEN_ID, VOCAB_SIZE, is_greedy, naive_greedy, naive_logits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WINDOWS = [(None, None), (6, 6), (None, 5, 9)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps_ahead", [0, 1, 3])
@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_greedy_tokens_are_those_of_computing_everything_anew(
    windows: tuple[int | None, ...], chunk: int | None, steps_ahead: int, device: str
) -> None:
    driver = Driver(windows, device)
    driver.poison_kv_cache()
    prompts = make_prompts()
    requests = requests_for(prompts)
    outputs = driver.run(requests, chunk, steps_ahead)
    assert [request.error for request in requests] == [None] * len(requests)
    if device == "cpu":
        assert outputs == [naive_greedy(driver.model, prompt, 12) for prompt in prompts]
    else:  # products of other shapes round differently
        assert all(is_greedy(driver.model, prompt, output, 1e-2) for prompt, output in zip(prompts, outputs, strict=True))


@pytest.mark.parametrize("num_decode_steps", [2, 5])
@pytest.mark.parametrize("steps_ahead", [0, 2])
@pytest.mark.parametrize("settings", [[{}], DRAWN, [{"logit_bias": {9: 2.0}}]], ids=str)
def test_several_steps_in_one_plan_give_the_same_tokens(
    settings: list[dict[str, Any]], steps_ahead: int, num_decode_steps: int
) -> None:
    driver = Driver((None, 5))
    prompts = make_prompts()
    one_by_one = driver.run(requests_for(prompts, *settings))
    assert driver.run(requests_for(prompts, *settings), None, steps_ahead, num_decode_steps) == one_by_one


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("steps_ahead", [0, 2])
def test_drawn_tokens_do_not_depend_on_the_batch(steps_ahead: int, chunk: int | None, device: str) -> None:
    driver = Driver(device=device)
    prompts = make_prompts()
    alone = [driver.run([request])[0] for request in requests_for(prompts, *DRAWN)]
    assert driver.run(requests_for(prompts, *DRAWN), chunk, steps_ahead) == alone
    assert len(set(map(tuple, alone))) == len(alone)


def test_seeds_decide_what_is_drawn() -> None:
    driver = Driver()
    prompt = make_prompts((9,))[0]
    settings = [{"temperature": 1.0, "seed": seed} for seed in (1, 2, 1)]
    first, second, third = driver.run(requests_for([prompt] * 3, *settings))
    assert first == third != second


@pytest.mark.parametrize("num_done", [1, 5, 11])
@pytest.mark.parametrize("settings", DRAWN, ids=["drawn", "filtered", "greedy", "penalized"])
def test_a_preempted_request_goes_on_as_if_nothing_had_happened(settings: dict[str, Any], num_done: int) -> None:
    driver = Driver()
    prompt = make_prompts((13,))[0]
    undisturbed = driver.run(requests_for([prompt], settings))[0]
    request = Request(2, prompt, sampling(**settings), num_tokens=num_done)
    driver.run([request])
    request.preempt()
    request.slot, request.num_tokens = 4, 12
    assert driver.run([request], chunk=6)[0] == undisturbed


def test_slots_forget_who_had_them() -> None:
    driver = Driver()
    prompts = make_prompts()
    expected = [driver.run([request])[0] for request in requests_for(prompts, *DRAWN)]
    for shift in range(4):
        requests = requests_for(prompts, *DRAWN)
        for request in requests:
            request.slot = (request.slot + shift) % 4
        assert driver.run(requests, steps_ahead=1) == expected


@pytest.mark.parametrize("steps_ahead", [0, 3])
def test_penalties_count_tokens_the_host_has_not_seen(steps_ahead: int) -> None:
    driver = Driver()
    prompt = make_prompts((20,))[0]
    settings = {"repetition_penalty": 1.5, "frequency_penalty": 0.6, "presence_penalty": 0.5}
    output = driver.run(requests_for([prompt], settings), steps_ahead=steps_ahead)[0]
    expected: list[int] = []
    for _ in output:
        logits = naive_logits(driver.model, prompt + expected)[-1].double()
        for token_id in set(prompt + expected):
            logits[token_id] = logits[token_id] / 1.5 if logits[token_id] > 0 else logits[token_id] * 1.5
        for token_id in set(expected):
            logits[token_id] -= 0.6 * expected.count(token_id) + 0.5
        expected.append(int(logits.argmax()))
    assert output == expected != naive_greedy(driver.model, prompt, 12)


def test_token_counts_exist_only_for_requests_with_penalties() -> None:
    driver = Driver()
    counts = driver.runner._counts
    prompts = make_prompts()
    driver.run(requests_for(prompts))
    assert counts.counts.shape[0] == 0
    for _ in range(3):
        driver.run(requests_for(prompts, {"presence_penalty": 0.5}, {}))
    assert counts.counts.shape[0] == 4
    others = requests_for(make_prompts((3,) * 6), {"presence_penalty": 0.5}, {})
    for request in others:
        request.slot ^= 1
    driver.run(others)
    assert counts.counts.shape[0] == 4
    driver.run(requests_for(make_prompts((3,) * 6), {"presence_penalty": 0.5}))
    assert counts.counts.shape[0] == 6


def test_counts_survive_when_more_requests_with_penalties_come() -> None:
    driver = Driver()
    prompts = make_prompts((4, 9, 6, 2, 11, 5))
    settings = {"frequency_penalty": 1.5, "presence_penalty": 0.5}
    expected = [driver.run([request])[0] for request in requests_for(prompts, settings)]
    driver = Driver()
    requests = requests_for(prompts, settings)
    for num_tokens, num_requests in ((5, 3), (8, 4), (12, 6)):
        for request in requests[:num_requests]:
            request.num_tokens = num_tokens
        driver.run(requests[:num_requests], steps_ahead=1)
    assert [request.output for request in requests] == expected


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_min_tokens_forbids_every_end_until_it_is_reached(ignore_eos: bool) -> None:
    driver = Driver()
    stop_token_id = 77
    bias = {EOS_TOKEN_ID: 50.0, stop_token_id: 40.0}
    settings = {"logit_bias": bias, "min_tokens": 4, "stop_token_ids": (stop_token_id,), "ignore_eos": ignore_eos}
    output = driver.run(requests_for(make_prompts((8,)), settings))[0]
    if ignore_eos:
        assert set(output) == {EOS_TOKEN_ID}
    else:
        assert not {EOS_TOKEN_ID, stop_token_id} & set(output[:4])
        assert output[4:] == [EOS_TOKEN_ID] * 8


@pytest.mark.parametrize("device", DEVICES)
def test_logprobs_are_those_of_the_model_whatever_the_sampling(device: str) -> None:
    driver = Driver(device=device)
    prompts = make_prompts()
    wanted = (0, 3, None, 20)
    settings = [
        {"temperature": 1.4, "logit_bias": {9: 5.0}, "presence_penalty": 1.0, "seed": place, "logprobs": num_top}
        for place, num_top in enumerate(wanted)
    ]
    requests = requests_for(prompts, *settings)
    driver.run(requests, steps_ahead=1)
    for request, num_top in zip(requests, wanted, strict=True):
        logits = naive_logits(driver.model, request.prompt + request.output)
        expected = torch.log_softmax(logits.double(), 1)[len(request.prompt) - 1 : -1].cpu()
        for position, (result, token_id) in enumerate(zip(request.results, request.output, strict=True)):
            assert (0 in result.logprobs) == (num_top is not None)
            if num_top is None:
                continue
            found = result.logprobs[0]
            order = expected[position].argsort(descending=True).tolist()
            assert found.token_ids == [[token_id, *order[:num_top]]]
            assert found.ranks == [order.index(token_id) + 1]
            values = expected[position][found.token_ids[0]].tolist()
            assert found.logprobs[0] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows_per_round", [1, 4, 1000])
@pytest.mark.parametrize("chunk", [None, 1, 6])
def test_prompt_logprobs_add_up_to_the_whole_prompt(
    chunk: int | None, rows_per_round: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_logprobs, "MAX_LOGITS_ELEMENTS", rows_per_round * VOCAB_SIZE)
    driver = Driver(device=device)
    prompts = make_prompts()
    wanted = (2, None, 0, 5)
    requests = requests_for(prompts, *({"prompt_logprobs": num_top} for num_top in wanted))
    driver.run(requests, chunk)
    for request, num_top in zip(requests, wanted, strict=True):
        parts = [part for result in request.results for part in result.prompt_logprobs.values()]
        if num_top is None:
            assert parts == []
            continue
        expected = torch.log_softmax(naive_logits(driver.model, request.prompt).double(), 1).cpu()
        token_ids = [row for part in parts for row in part.token_ids]
        logprobs = [row for part in parts for row in part.logprobs]
        ranks = [rank for part in parts for rank in part.ranks]
        assert [row[0] for row in token_ids] == request.prompt[1:]
        for position, row in enumerate(token_ids):
            order = expected[position].argsort(descending=True).tolist()
            assert row[1:] == order[:num_top]
            assert ranks[position] == order.index(row[0]) + 1
            assert logprobs[position] == pytest.approx(expected[position][row].tolist(), abs=1e-4)


def test_a_prompt_can_be_scored_without_sampling_a_token() -> None:
    driver = Driver()
    prompt = make_prompts((9,))[0]
    request = requests_for([prompt], {"prompt_logprobs": 1, "max_tokens": 0})[0]
    plan = driver.plan([request])
    scored_only = replace(plan, chunks=(replace(plan.chunks[0], samples_position=None),))
    result = driver.runner.launch(scored_only).wait()
    assert result.token_ids.tolist() == [[NO_TOKEN]]
    assert len(result.prompt_logprobs[0].ranks) == 8

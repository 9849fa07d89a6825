"""Plans that make no sense, logits that are no numbers, memory that is not there: what fails, and that the rest goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from penstock.engine.plan import NO_TOKEN
from penstock.engine.results import INVALID_LOGITS
from penstock.kernels import ops
from tests.engine.runner_driver import DRAWN, NUM_BLOCKS, Driver, make_prompts, requests_for, sampling
from tests.engine.tiny_model import NAN_TOKEN_ID, VOCAB_SIZE, naive_greedy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
EMPTY = np.zeros(0, np.int32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [{}, *DRAWN[:2], {"prompt_logprobs": 1, "logprobs": 1}], ids=str)
def test_only_the_request_whose_logits_are_nan_fails(settings: dict[str, Any], device: str) -> None:
    driver = Driver(device=device)
    prompts = make_prompts()
    expected = driver.run(requests_for(prompts, settings))
    with torch.no_grad():
        driver.model.embed_tokens.weight[NAN_TOKEN_ID] = torch.nan
    prompts[1][8] = NAN_TOKEN_ID
    requests = requests_for(prompts, settings)
    outputs = driver.run(requests)
    assert [request.error for request in requests] == [None, INVALID_LOGITS, None, None]
    assert outputs == [expected[0], [], *expected[2:]]
    assert not any(result.logprobs or result.prompt_logprobs for result in requests[1].results)


def test_nan_in_a_prompt_that_is_scored_is_found_before_anything_is_sampled() -> None:
    driver = Driver()
    with torch.no_grad():
        driver.model.embed_tokens.weight[NAN_TOKEN_ID] = torch.nan
    prompts = make_prompts((20, 20))
    prompts[0][4] = NAN_TOKEN_ID
    requests = requests_for(prompts, {"prompt_logprobs": 0})
    driver.read(plan := driver.plan(requests, chunk=8), requests, driver.runner.launch(plan))
    assert [request.error for request in requests] == [INVALID_LOGITS, None]
    assert [bool(request.results[0].prompt_logprobs) for request in requests] == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": 5}, "slot 5 holds no request"),
        ({"slot": -1}, "slot -1 holds no request"),
        ({"token_ids": np.full(17, VOCAB_SIZE, np.int32)}, "outside the vocabulary"),
        ({"token_ids": np.full(17, -1, np.int32)}, "outside the vocabulary"),
        ({"token_ids": np.zeros(0, np.int32)}, "0 tokens are planned"),
        ({"num_computed_tokens": -1}, "from position -1"),
        ({"num_computed_tokens": 4}, "6 KV blocks are needed, the slot has 5"),
    ],
    ids=str,
)
def test_a_chunk_that_makes_no_sense_fails_alone(changes: dict[str, Any], message: str) -> None:
    driver = Driver()
    prompts = make_prompts()
    plan = driver.plan(requests_for(prompts))
    chunks = list(plan.chunks)
    chunks[1] = replace(chunks[1], **changes)
    result = driver.runner.launch(replace(plan, chunks=tuple(chunks))).wait()
    assert list(result.errors) == [1]
    assert message in result.errors[1]
    first_tokens = [naive_greedy(driver.model, prompt, 1)[0] for prompt in prompts]
    assert result.token_ids.tolist() == [[first_tokens[0], NO_TOKEN, *first_tokens[2:]]]


@pytest.mark.parametrize(("name", "bad"), [("block_ids", NUM_BLOCKS), ("block_ids", -1), ("columns", 24), ("columns", -1)])
def test_a_block_that_does_not_exist_fails_its_request_alone(name: str, bad: int) -> None:
    driver = Driver((None, 5))
    prompts = make_prompts()
    requests = requests_for(prompts)
    plan = driver.plan(requests)
    blocks = plan.new_blocks[1]
    entries = getattr(blocks, name).copy()
    entries[np.flatnonzero(blocks.slots == 1)[2]] = bad
    spoiled = replace(plan, new_blocks=(plan.new_blocks[0], replace(blocks, **{name: entries})))
    result = driver.runner.launch(spoiled).wait()
    assert list(result.errors) == [1]
    assert "outside the KV cache" in result.errors[1]
    assert result.token_ids[0, 0] == naive_greedy(driver.model, prompts[0], 1)[0]


@pytest.mark.parametrize("slot", [5, 6, -1])
def test_a_decode_of_a_slot_without_a_request_fails_alone(slot: int) -> None:
    driver = Driver()
    prompts = make_prompts()
    requests = requests_for(prompts)
    driver.read(plan := driver.plan(requests), requests, driver.runner.launch(plan))
    plan = driver.plan(requests)
    decode_slots = plan.decode_slots.copy()
    decode_slots[2] = slot
    result = driver.runner.launch(replace(plan, decode_slots=decode_slots)).wait()
    assert list(result.errors) == [2]
    expected = [naive_greedy(driver.model, prompt, 2)[1] for prompt in prompts]
    assert result.token_ids.tolist() == [[*expected[:2], NO_TOKEN, expected[3]]]


def test_a_decode_beyond_its_blocks_fails_alone() -> None:
    driver = Driver()
    prompts = make_prompts((7, 4))
    requests = requests_for(prompts)
    driver.read(plan := driver.plan(requests), requests, driver.runner.launch(plan))
    plan = driver.plan(requests)
    without_blocks = replace(
        plan, new_blocks=(replace(plan.new_blocks[0], **dict.fromkeys(("slots", "columns", "block_ids"), EMPTY)),)
    )
    result = driver.runner.launch(without_blocks).wait()
    assert list(result.errors) == [1]
    assert result.token_ids[0, 0] == naive_greedy(driver.model, prompts[0], 2)[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_bias": {VOCAB_SIZE: 1.0}},
        {"stop_token_ids": (-1,), "min_tokens": 2},
        {"presence_penalty": 1.0},
        {"prompt_logprobs": 1},
    ],
    ids=str,
)
def test_a_request_with_token_ids_the_model_lacks_fails_alone(settings: dict[str, Any]) -> None:
    driver = Driver()
    prompts = make_prompts()
    requests = requests_for(prompts)
    requests[2].sampling = sampling(**settings)
    requests[2].prompt = [VOCAB_SIZE + 1]
    outputs = driver.run(requests)
    assert "outside the vocabulary" in str(requests[2].error)
    assert outputs[3] == naive_greedy(driver.model, prompts[3], 12)


def test_all_requests_of_a_step_may_fail() -> None:
    driver = Driver()
    plan = driver.plan(requests_for(make_prompts()))
    chunks = tuple(replace(chunk, token_ids=EMPTY) for chunk in plan.chunks)
    assert set(driver.runner.launch(replace(plan, chunks=chunks)).wait().errors) == {0, 1, 2, 3}


@pytest.mark.parametrize("failing", ["paged_attention", "sample_tokens", "top_logprobs", "count_tokens"])
def test_a_step_that_runs_out_of_memory_can_be_launched_again(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    prompts = make_prompts()
    settings = {"logprobs": 1, "frequency_penalty": 0.7}
    expected = driver.run(requests_for(prompts, settings))

    def out_of_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    requests = requests_for(prompts, settings)
    while not all(request.is_done for request in requests):
        plan = driver.plan(requests, chunk=9)
        with monkeypatch.context() as patch:
            patch.setattr(ops, failing, out_of_memory)
            pending = driver.runner.launch(plan)
        try:
            driver.read(plan, requests, pending)
        except torch.OutOfMemoryError:
            driver.read(plan, requests, driver.runner.launch(plan))
        else:
            assert failing in ("top_logprobs", "count_tokens")
            assert all(chunk.samples_position is None for chunk in plan.chunks)
            assert not len(plan.decode_slots)
    assert [request.output[:12] for request in requests] == expected


def test_a_request_whose_counts_do_not_fit_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    prompts = make_prompts()
    requests = requests_for(prompts, {}, {"frequency_penalty": 0.7})

    def out_of_memory(slot: int) -> int:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(driver.runner._counts, "take_row", out_of_memory)
    outputs = driver.run(requests)
    assert [request.error is None for request in requests] == [True, False, True, False]
    assert "penalties" in str(requests[1].error)
    assert outputs[0] == naive_greedy(driver.model, prompts[0], 12)

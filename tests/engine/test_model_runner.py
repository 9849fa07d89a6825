"""The runner against the model computed whole and anew for every token, and against itself in other batches."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from penstock.engine import prompt_logprobs
from penstock.engine.plan import NO_TOKEN, ScheduledChunk, StepPlan
from penstock.engine.results import INVALID_LOGITS
from penstock.kernels import ops
from tests.engine.runner_driver import (
    EOS_TOKEN_ID,
    NUM_BLOCKS,
    VOCAB_SIZE,
    Driver,
    Request,
    naive_greedy,
    naive_logits,
    sampling,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WINDOWS = [(None, None), (6, 6), (None, 5, 9)]
PROMPT_LENGTHS = (3, 17, 1, 30)
NAN_TOKEN_ID = 300


def make_prompts(lengths: tuple[int, ...] = PROMPT_LENGTHS) -> list[list[int]]:
    return [[random.randrange(10, NAN_TOKEN_ID) for _ in range(length)] for length in lengths]


def requests_for(prompts: list[list[int]], *settings: dict[str, Any]) -> list[Request]:
    """A request per prompt, each in a slot of its own; settings are taken in turn, greedy where there are none."""
    chosen = settings or ({},)
    return [Request(slot, prompt, sampling(**chosen[slot % len(chosen)])) for slot, prompt in enumerate(prompts)]


DRAWN: list[dict[str, Any]] = [
    {"temperature": 0.9, "seed": 7},
    {"temperature": 1.3, "seed": 2**62 + 5, "top_k": 40, "top_p": 0.95, "min_p": 0.001},
    {},
    {"temperature": 1.0, "seed": 8, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3},
]


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
    assert outputs == [naive_greedy(driver.model, prompt, 12) for prompt in prompts]


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
    scheduled = plan.requests[0]
    scored_only = ScheduledRequest(
        slot=scheduled.slot,
        num_computed_tokens=0,
        num_new_tokens=scheduled.num_new_tokens,
        token_ids=scheduled.token_ids,
        new_block_ids=scheduled.new_block_ids,
        samples_position=None,
    )
    result = driver.runner.launch(StepPlan(started=plan.started, requests=(scored_only,))).wait()
    assert result.token_ids == [[]]
    assert len(result.prompt_logprobs[0].ranks) == 8


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
    driver.read(requests, driver.runner.launch(driver.plan(requests, chunk=8)))
    assert [request.error for request in requests] == [INVALID_LOGITS, None]
    assert [bool(request.results[0].prompt_logprobs) for request in requests] == [False, True]


def spoiled(request: ScheduledRequest, **changes: Any) -> ScheduledRequest:
    fields = {name: getattr(request, name) for name in ScheduledRequest.__dataclass_fields__}
    return ScheduledRequest(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": 5}, "slot 5 holds no request"),
        ({"token_ids": [VOCAB_SIZE] * 17}, "outside the vocabulary"),
        ({"token_ids": [-1] * 17}, "outside the vocabulary"),
        ({"token_ids": [2**70] * 17}, "too large"),
        ({"token_ids": [1, 2]}, "17 tokens are planned and 2 given"),
        ({"token_ids": None}, "17 tokens are planned and 1 given"),
        ({"new_block_ids": ((1, 2),)}, "5 KV blocks are needed"),
        ({"new_block_ids": (tuple(range(40)),)}, "5 KV blocks are needed"),
        ({"new_block_ids": ((1, 2, 3, 4, NUM_BLOCKS),)}, "outside the KV cache"),
        ({"new_block_ids": ((1,), (2,))}, "argument 2"),
    ],
    ids=str,
)
def test_a_share_that_makes_no_sense_fails_alone(changes: dict[str, Any], message: str) -> None:
    driver = Driver()
    prompts = make_prompts()
    plan = driver.plan(requests_for(prompts))
    shares = list(plan.requests)
    shares[1] = spoiled(shares[1], **changes)
    result = driver.runner.launch(StepPlan(started=plan.started, requests=tuple(shares))).wait()
    assert list(result.errors) == [1]
    assert message in result.errors[1]
    first_tokens = [[naive_greedy(driver.model, prompt, 1)[0]] for prompt in prompts]
    assert result.token_ids == [first_tokens[0], [], *first_tokens[2:]]


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
    shares = tuple(spoiled(share, num_new_tokens=0) for share in plan.requests)
    assert set(driver.runner.launch(StepPlan(started=plan.started, requests=shares)).wait().errors) == {0, 1, 2, 3}


@pytest.mark.parametrize("failing", ["rms_norm", "argmax", "top_logprobs", "count_tokens"])
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
            driver.read(requests, pending)
        except torch.OutOfMemoryError:
            driver.read(requests, driver.runner.launch(plan))
        else:
            assert failing != "rms_norm"
            assert all(share.samples_position is None for share in plan.requests)
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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    on_cpu, on_cuda = Driver(), Driver(device="cuda", dtype=dtype)
    requests = requests_for(make_prompts(), {"logprobs": 5, "prompt_logprobs": 0})
    on_cuda.run(requests, chunk=8, steps_ahead=1)
    tolerance = 1e-3 if dtype == torch.float32 else 0.15
    for request in requests:
        logits = naive_logits(on_cpu.model, request.prompt + request.output)
        expected = torch.log_softmax(logits.double(), 1)[len(request.prompt) - 1 : -1]
        found = [part for result in request.results for part in result.logprobs.values()]
        for position, part in enumerate(found):
            assert part.logprobs[0] == pytest.approx(expected[position][part.token_ids[0]].tolist(), abs=tolerance)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("settings", [[{}], [{"temperature": 0.8}], DRAWN, [{"logprobs": 3, "min_tokens": 30}]], ids=str)
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_launching_does_not_wait_for_the_device(windows: tuple[int | None, ...], settings: list[dict[str, Any]]) -> None:
    driver = Driver(windows, "cuda")
    requests = requests_for(make_prompts(), *settings)
    in_flight = []
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(6):
            in_flight.append(driver.runner.launch(driver.plan(requests)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for pending in in_flight:
        driver.read(requests, pending)
    again = requests_for([request.prompt for request in requests], *settings)
    assert [request.output for request in requests] == [output[:6] for output in driver.run(again)]

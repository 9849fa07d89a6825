"""What the door refuses, and whom it blames."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from penstock.engine.errors import Refused
from penstock.ipc.messages import RejectReason, Sampling, Submit
from tests.engine.toy_engine import make_scheduler, make_submit


def refusal_of(submit: Submit, **scheduling: Any) -> Refused:
    scheduler = make_scheduler(**scheduling)
    with pytest.raises(Refused) as caught:
        scheduler.submit("key", submit)
    assert not scheduler.has_work
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("max_tokens", -1),
        ("max_tokens", 2**31),
        ("min_tokens", -1),
        ("min_tokens", 9),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e39),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2**40),
        ("min_p", 1.5),
        ("min_p", -math.inf),
        ("presence_penalty", 2.1),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", 1e39),
        ("repetition_penalty", 1e-40),
        ("logprobs", 21),
        ("logprobs", -1),
        ("prompt_logprobs", 21),
        ("logit_bias", {512: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {3: 101.0}),
        ("logit_bias", {3: math.nan}),
        ("stop_token_ids", (512,)),
        ("stop_token_ids", (3, -1)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    refusal = refusal_of(make_submit([1, 2], **{"max_tokens": 8, field: value}))
    assert refusal.reason is RejectReason.INVALID
    assert refusal.param == field
    assert field in refusal.message


@pytest.mark.parametrize("prompt", [[512], [-1], [1, 2, 600, 3], []], ids=str)
def test_token_ids_must_be_the_models(prompt: list[int]) -> None:
    refusal = refusal_of(make_submit(prompt))
    assert (refusal.reason, refusal.param) == (RejectReason.INVALID, "prompt")


def test_output_so_far_must_leave_a_prompt() -> None:
    assert refusal_of(make_submit([], output=[1, 2])).param == "prompt"
    submit = Submit(request_id=1, token_ids=b"\1\0\0\0", num_output_tokens=-1, sampling=Sampling(seed=0, max_tokens=1))
    assert refusal_of(submit).param == "prompt"


def test_bytes_that_are_no_int32_array_are_refused() -> None:
    submit = Submit(request_id=1, token_ids=b"12345", num_output_tokens=0, sampling=Sampling(seed=0, max_tokens=1))
    assert refusal_of(submit).reason is RejectReason.INVALID


def test_the_prompt_and_one_token_must_fit_the_context() -> None:
    refusal = refusal_of(make_submit([1] * 200), max_model_len=200)
    assert refusal.reason is RejectReason.TOO_LONG
    assert "200" in refusal.message
    make_scheduler(max_model_len=200).submit("fits", make_submit([1] * 199))
    make_scheduler(max_model_len=200).submit("scores", make_submit([1] * 200, 0))


def test_what_can_never_fit_the_kv_cache_is_refused_at_the_door() -> None:
    refusal = refusal_of(make_submit([1] * 41), num_blocks=10)
    assert (refusal.reason, refusal.param) == (RejectReason.TOO_LONG, "prompt")
    refusal = refusal_of(make_submit([1] * 30, 12), num_blocks=10)
    assert (refusal.reason, refusal.param) == (RejectReason.TOO_LONG, "max_tokens")
    make_scheduler(num_blocks=10).submit("the last token's KV is never needed", make_submit([1] * 30, 11))


def test_every_kv_group_counts() -> None:
    assert refusal_of(make_submit([1] * 30, 11), num_blocks=19, windows=(None, None)).reason is RejectReason.TOO_LONG
    make_scheduler(num_blocks=20, windows=(None, None)).submit("fits", make_submit([1] * 30, 11))


def test_prompt_logprobs_must_fit_into_one_message() -> None:
    submit = make_submit([1] * 210_000, prompt_logprobs=20)
    refusal = refusal_of(submit, max_model_len=300_000, num_blocks=100_000)
    assert (refusal.reason, refusal.param) == (RejectReason.INVALID, "prompt_logprobs")


numbers = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats())


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        Sampling,
        seed=st.integers(-(2**63), 2**64 - 1),
        max_tokens=st.integers(-5, 2**40),
        temperature=numbers,
        top_p=numbers,
        top_k=st.integers(-(2**63), 2**64 - 1),
        min_p=numbers,
        presence_penalty=numbers,
        frequency_penalty=numbers,
        repetition_penalty=numbers,
        logit_bias=st.dictionaries(st.integers(-(2**63), 2**64 - 1), numbers, max_size=3),
        min_tokens=st.integers(-(2**63), 2**64 - 1),
        stop_token_ids=st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3).map(tuple),
        logprobs=st.none() | st.integers(-(2**63), 2**64 - 1),
        prompt_logprobs=st.none() | st.integers(-(2**63), 2**64 - 1),
    ),
    st.binary(max_size=40),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-(2**63), 2**64 - 1),
)
def test_whatever_decodes_is_taken_or_refused(sampling: Sampling, token_ids: bytes, num_output: int, priority: int) -> None:
    scheduler = make_scheduler()
    submit = Submit(request_id=1, token_ids=token_ids, num_output_tokens=num_output, sampling=sampling, priority=priority)
    with contextlib.suppress(Refused):
        scheduler.submit("key", submit)
        assert scheduler.has_work
        return
    assert not scheduler.has_work

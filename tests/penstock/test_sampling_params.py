from __future__ import annotations

import math
from typing import Any

import pytest

from penstock.frontend.seeds import SEED_LIMIT, child_seed
from penstock.ipc.messages import Sampling
from penstock.sampling_params import SamplingParams


def test_the_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.logprobs, params.prompt_logprobs) == (16, 0, None, None)
    assert (params.detokenize, params.skip_special_tokens, params.include_stop_str_in_output) == (True, True, False)
    assert params.to_sampling(seed=7, max_tokens=16) == Sampling(seed=7, max_tokens=16)


def test_every_field_reaches_the_engine() -> None:
    params = SamplingParams(
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        stop_token_ids=[3, 4],
        ignore_eos=True,
        max_tokens=50,
        min_tokens=5,
        logprobs=2,
        prompt_logprobs=1,
        logit_bias={5: -100, 6: 1.5},
    )
    assert params.to_sampling(seed=1, max_tokens=20) == Sampling(
        seed=1,
        max_tokens=20,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={5: -100.0, 6: 1.5},
        min_tokens=5,
        stop_token_ids=(3, 4),
        ignore_eos=True,
        logprobs=2,
        prompt_logprobs=1,
    )


def test_numbers_arrive_in_the_types_of_the_wire() -> None:
    sampling = SamplingParams(temperature=1, top_p=1, presence_penalty=2, logit_bias={1: 1}).to_sampling(seed=0, max_tokens=1)
    assert all(type(value) is float for value in (sampling.temperature, sampling.top_p, sampling.presence_penalty))
    assert type(sampling.logit_bias[1]) is float


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (name, value)
            for name in ("temperature", "repetition_penalty")
            for value in (-1, math.nan, math.inf, "1", None, True)
        ),
        *((name, value) for name in ("presence_penalty", "frequency_penalty") for value in (-2.1, 2.1, math.nan, "0")),
        ("repetition_penalty", 0),
        *(("top_p", value) for value in (0, -0.1, 1.1, math.nan)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan)),
        *(("top_k", value) for value in (-2, 1.5, "5")),
        *((name, value) for name in ("n", "max_tokens") for value in (0, -1, 1.5, True, "1")),
        ("n", None),
        *(("min_tokens", value) for value in (-1, 17, None)),
        *((name, value) for name in ("logprobs", "prompt_logprobs") for value in (-1, 21, 1.0, True)),
        *(("seed", value) for value in (-1, 2**63, 1.5, "x")),
        *(("stop", value) for value in ("", ["a", ""], [1], [["a"]])),
        *(("stop_token_ids", value) for value in ([-1], ["a"], [1.5])),
        *(("logit_bias", value) for value in ({-1: 1}, {1: 101}, {1: math.nan}, {"1": 1}, [1])),
        *((name, value) for name in ("ignore_eos", "detokenize", "skip_special_tokens") for value in (None, 1, "yes")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("field", ["best_of", "bad_words", "structured_outputs", "allowed_token_ids", "logits_processors"])
def test_an_unknown_field_is_refused_by_name(field: str) -> None:
    options: dict[str, Any] = {field: None}
    with pytest.raises(TypeError, match=field):
        SamplingParams(**options)


def test_stop_strings_need_text() -> None:
    with pytest.raises(ValueError, match="detokenize"):
        SamplingParams(stop="a", detokenize=False)


@pytest.mark.parametrize(("stop", "strings"), [(None, ()), ("ab", ("ab",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_is_one_text_or_several(stop: Any, strings: tuple[str, ...]) -> None:
    assert SamplingParams(stop=stop).stop_strings == strings


def test_a_field_assigned_later_is_checked_on_use() -> None:
    params = SamplingParams()
    params.max_tokens = 100
    params.check()
    params.top_p = 2.0
    with pytest.raises(ValueError, match="top_p"):
        params.check()


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_has_two_words_for_off(top_k: int) -> None:
    assert SamplingParams(top_k=top_k).to_sampling(seed=0, max_tokens=1).top_k == 0


def test_fewer_tokens_than_min_tokens_may_be_left() -> None:
    assert SamplingParams(min_tokens=10).to_sampling(seed=0, max_tokens=3).min_tokens == 3


def test_child_seeds_differ_and_the_first_is_the_requests_own() -> None:
    assert child_seed(5, 0) == 5
    seeds = [child_seed(seed, index) for seed in range(50) for index in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)
    assert 0 <= child_seed(SEED_LIMIT - 1, 2**31) < SEED_LIMIT


def test_child_seeds_stay_the_same_from_release_to_release() -> None:
    assert [child_seed(0, 1), child_seed(1, 2)] == [8118103383084794603, 2645309349245723542]

from __future__ import annotations

from array import array
from typing import Any

import pytest

from tests.frontend.harness import Frontend, error_of, events


async def test_a_completion_parses_as_the_openai_client_expects(frontend: Frontend) -> None:
    completion = await frontend.openai().completions.create(model="toy", prompt="hi")
    [choice] = completion.choices
    assert choice.text == "Hello, world!"
    assert choice.finish_reason == "length"
    assert completion.object == "text_completion"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, 13)
    assert frontend.engine.submits[0].sampling.max_tokens == 16


async def test_a_streamed_completion_adds_up(frontend: Frontend) -> None:
    frontend.engine.delay_s = 0.005
    stream = await frontend.openai().completions.create(
        model="toy", prompt="hi", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Hello, world!"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [*[None] * (len(chunks) - 2), "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 15


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97], [98, 99]], [b"a", b"bc"]),
    ],
)
async def test_each_kind_of_prompt_reaches_the_engine(frontend: Frontend, prompt: Any, expected: list[bytes]) -> None:
    response = await frontend.complete(prompt=prompt)
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(len(expected)))
    assert [bytes(array("i", submit.token_ids).tolist()) for submit in frontend.engine.submits] == expected


async def test_n_choices_of_each_prompt_come_in_order(frontend: Frontend) -> None:
    response = await frontend.complete(prompt=["ab", "c"], n=2, seed=5, echo=True)
    assert [choice["text"][:2] for choice in response.json()["choices"]] == ["ab", "ab", "cH", "cH"]
    assert response.json()["usage"]["prompt_tokens"] == 3
    assert response.json()["usage"]["completion_tokens"] == 4 * 13
    seeds = [submit.sampling.seed for submit in frontend.engine.submits]
    assert seeds[0] == seeds[2] == 5
    assert seeds[1] == seeds[3] != 5


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_evaluator_gets_the_prompts_logprobs(frontend: Frontend, max_tokens: int, stream: bool) -> None:
    response = await frontend.complete(
        prompt=list(b"abc"), echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, stream=stream
    )
    if stream:
        chunks = [event["choices"][0] for event in events(response)[:-1]]
        text = "".join(chunk["text"] for chunk in chunks)
        logprobs = {name: [value for chunk in chunks for value in chunk["logprobs"][name]] for name in chunks[0]["logprobs"]}
    else:
        [choice] = response.json()["choices"]
        text, logprobs = choice["text"], choice["logprobs"]
    assert text == "abcH"[: 3 + max_tokens]
    assert logprobs["tokens"] == list(text)
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5][: 3 + max_tokens]
    assert logprobs["top_logprobs"][:2] == [None, {"A": -1.0, "b": -0.5}]
    assert logprobs["text_offset"] == list(range(3 + max_tokens))
    [submit] = frontend.engine.submits
    assert submit.sampling.prompt_logprobs == 1
    assert submit.sampling.max_tokens == max_tokens


async def test_echo_alone_repeats_the_prompt(frontend: Frontend) -> None:
    [choice] = (await frontend.complete(echo=True, max_tokens=5)).json()["choices"]
    assert choice["text"] == "hiHello"
    assert choice["logprobs"] is None


async def test_logprobs_zero_reports_the_tokens_themselves(frontend: Frontend) -> None:
    [choice] = (await frontend.complete(logprobs=0, max_tokens=2)).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["H", "e"]
    assert choice["logprobs"]["top_logprobs"] == [{"H": -0.5}, {"e": -0.5}]


@pytest.mark.parametrize(
    "prompt", [None, "", [], [[]], [""], ["a", 1], [[1], "a"], [True], [1.5], {"a": 1}, 3, [[1], []], [-1], [300], [[2**40]]]
)
async def test_a_prompt_that_is_none_is_refused(frontend: Frontend, prompt: Any) -> None:
    response = await frontend.complete(prompt=prompt)
    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"
    assert frontend.engine.submits == []


async def test_no_tokens_without_echo_are_refused(frontend: Frontend) -> None:
    response = await frontend.complete(max_tokens=0)
    assert error_of(response)["param"] == "max_tokens"


async def test_too_many_choices_in_all_are_refused(frontend: Frontend) -> None:
    response = await frontend.complete(prompt=["a"] * 100, n=100)
    assert response.status_code == 400
    assert error_of(response)["param"] == "n"


async def test_a_prompt_over_the_context_is_refused_with_the_numbers(frontend: Frontend) -> None:
    for fields, param in (
        ({"prompt": "x" * 257}, "prompt"),
        ({"prompt": "x" * 257, "max_tokens": 7}, "prompt"),
        ({"prompt": "x" * 250, "max_tokens": 7}, "max_tokens"),
        ({"prompt": "x" * 256}, "prompt"),
        ({"prompt": "y" * 10**6}, "prompt"),
    ):
        response = await frontend.complete(**fields)
        error = error_of(response)
        assert response.status_code == 400
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == param
        assert "256" in error["message"]
    assert (await frontend.complete(prompt="x" * 250, max_tokens=6)).status_code == 200
    assert (await frontend.complete(prompt="x" * 256, max_tokens=0, echo=True)).status_code == 200
    assert len(frontend.engine.submits) == 2

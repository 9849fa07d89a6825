from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.frontend.harness import Frontend, error_of

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "body"),
        (b"{", "JSON"),
        (b"[]", "body"),
        (b'"x"', "body"),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "UTF-8"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "Infinity"),
        (b'{"temperature": 1e999}', "range"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "range"),
        (b"[" * 100_000, "nested"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b'{"model": "\\udfff"}', "surrogate"),
    ],
    ids=["empty", "cut", "list", "text", "utf8", "nan", "inf", "1e999", "digits", "deep", "nested", "surrogate", "model"],
)
async def test_a_hostile_body_is_a_400(frontend: Frontend, body: bytes, word: str) -> None:
    response = await frontend.post(CHAT, content=body)
    assert response.status_code == 400
    assert word in json.dumps(error_of(response))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", True),
        ("temperature", "NaN"),
        ("temperature", "0.5"),
        ("temperature", 1e300),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 2**40),
        ("top_k", 1.5),
        ("min_p", -1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 10**30),
        ("max_tokens", True),
        ("max_completion_tokens", 0),
        ("min_tokens", -1),
        ("n", 0),
        ("n", 129),
        ("n", 2**63),
        ("seed", 2**63),
        ("seed", "1"),
        ("stop", ""),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 1025),
        ("stop", 3),
        ("stop_token_ids", [300]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["1"]),
        ("logit_bias", {"300": 1}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"6_6": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": True}),
        ("logit_bias", {"1": 1, "01": 2}),
        ("logit_bias", [1]),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("top_logprobs", 1),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("stream_options", 1),
        ("priority", 2**31),
        ("cache_salt", ""),
        ("messages", []),
        ("messages", None),
        ("messages", "hi"),
        ("messages", [{"content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        ("messages", [{"role": "user", "content": 3}]),
        ("chat_template_kwargs", {"messages": []}),
        ("chat_template_kwargs", {"self": 1}),
        ("chat_template_kwargs", {"x": {"nested": 1}}),
        ("chat_template_kwargs", {"tokenize": True}),
    ],
)
async def test_a_wrong_value_is_a_400_that_names_the_field(frontend: Frontend, field: str, value: Any) -> None:
    response = await frontend.post(CHAT, {"messages": MESSAGES, field: value})
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == field
    assert frontend.engine.submits == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("best_of", 2),
        ("best_of", True),
        ("suffix", "x"),
        ("use_beam_search", True),
        ("structured_outputs", {"regex": "a"}),
        ("guided_json", {}),
        ("guided_choice", ["a"]),
        ("functions", [{"name": "f"}]),
        ("logits_processors", ["x"]),
        ("chat_template", "{{ x }}"),
        ("truncate_prompt_tokens", 5),
        ("modalities", ["text", "audio"]),
        ("prompt_logprobs", 1),
        ("echo", True),
    ],
)
async def test_a_feature_that_is_not_built_is_refused_by_name(frontend: Frontend, field: str, value: Any) -> None:
    response = await frontend.post(CHAT, {"messages": MESSAGES, field: value})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == field
    assert field in error["message"]


async def test_values_that_ask_for_nothing_are_accepted(frontend: Frontend) -> None:
    response = await frontend.chat(
        tools=[], tool_choice="none", response_format={"type": "text"}, best_of=1, functions=None, guided_json=None,
        use_beam_search=False, length_penalty=1.0, modalities=["text"], top_k=-1, stop=None, n=None, max_tokens=None,
        logit_bias=None, stream=None, stream_options=None, temperature=None, top_logprobs=0, logprobs=False,
    )  # fmt: skip
    assert response.status_code == 200, response.text


async def test_openais_fields_without_meaning_here_are_accepted_in_silence(
    frontend: Frontend, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {
        "user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": False,
        "safety_identifier": "x", "prompt_cache_key": "k", "verbosity": "low",
    }  # fmt: skip
    assert (await frontend.chat(**fields)).status_code == 200
    assert "unknown request field" not in caplog.text


async def test_an_unknown_field_is_ignored_and_logged_once(frontend: Frontend, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert (await frontend.chat(provider_extra={"x": 1})).status_code == 200
    assert caplog.text.count("provider_extra") == 1


async def test_an_unknown_model_is_a_404(frontend: Frontend) -> None:
    for path, body in ((CHAT, {"messages": MESSAGES}), ("/v1/completions", {"prompt": "x"}), ("/tokenize", {"prompt": "x"})):
        response = await frontend.post(path, {**body, "model": "gpt-9"})
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"
    assert (await frontend.chat(model="org/toy-alias")).status_code == 200


async def test_unknown_routes_and_methods_have_openais_shape(frontend: Frontend) -> None:
    unknown = await frontend.http.get("/v1/nothing")
    assert unknown.status_code == 404
    assert "/v1/nothing" in error_of(unknown)["message"]
    wrong = await frontend.http.get(CHAT)
    assert wrong.status_code == 405
    error_of(wrong)


async def test_what_pydantic_finds_says_nothing_of_the_value(frontend: Frontend) -> None:
    response = await frontend.chat(temperature="secret-value")
    assert "secret-value" not in response.text
    assert "pydantic" not in response.text


async def test_an_unexpected_exception_is_a_500_with_the_request_id_alone(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("secret /path")

    monkeypatch.setattr(frontend.service, "ready_model", broken)
    response = await frontend.post(CHAT, {"messages": MESSAGES}, headers={"X-Request-Id": "req-7"})
    assert response.status_code == 500
    assert "req-7" in error_of(response)["message"]
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "req-7"
    assert "secret /path" in caplog.text
    assert "req-7" in caplog.text


async def test_a_request_id_is_honoured_if_it_is_harmless(frontend: Frontend) -> None:
    async def returned(given: str) -> str:
        return str((await frontend.http.get("/livez", headers={"X-Request-Id": given})).headers["x-request-id"])

    assert await returned("abc-1.2:3_x") == "abc-1.2:3_x"
    for bad in ("a b", "x" * 129, "a\tb", "<script>"):
        assert await returned(bad) != bad
    assert len(await returned("bad id")) == 32

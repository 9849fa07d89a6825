"""`penstock serve` with the demo model, asked by the official openai client: what a user sees, over real processes."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.servers import ROOT, Server, free_port, running_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MODEL = "penstock-demo"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server("--frontends", "2") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as sync_client:
        yield sync_client


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def wait_until_idle(server: Server, timeout_s: float = 10.0) -> None:
    """Waits until nothing runs or waits; the KV cache must balance then."""
    deadline = time.monotonic() + timeout_s
    while server.metric("penstock:num_requests_running") + server.metric("penstock:num_requests_waiting") > 0:
        assert time.monotonic() < deadline, "requests still open"
        time.sleep(0.05)
    assert server.metric("penstock:kv_blocks", state="owned") == 0


def test_a_chat_gets_a_sensible_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=user("What is 12 + 30?"), temperature=0)
    assert "42" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_adds_up_to_the_complete_one(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": user("Count from 3 to 9."), "temperature": 0}
    complete = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == complete.choices[0].message.content
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert complete.usage is not None
    assert chunks[-1].usage.completion_tokens == complete.usage.completion_tokens


def test_the_conversation_so_far_is_found_in_the_prefix_cache(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "You are a helpful assistant. " * 10}, *user("Hello! Who are you?")]
    for cached in (False, True):
        answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        assert details is not None
        assert ((details.cached_tokens or 0) >= 16) == cached


def test_a_seed_repeats_a_sampled_answer_and_no_seed_does_not(client: openai.OpenAI) -> None:
    def sample(seed: int | None) -> str:
        extra = {"ignore_eos": True}
        answer = client.completions.create(
            model=MODEL, prompt="Once", max_tokens=24, temperature=1.5, seed=seed, extra_body=extra
        )
        return answer.choices[0].text

    assert sample(7) == sample(7)
    assert len({sample(None) for _ in range(4)}) > 1


def test_n_choices_are_told_apart_while_streaming(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=user("Spell cat."), n=3, temperature=0, stream=True)
    texts, finished = ["", "", ""], []
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finished += [choice.index] if choice.finish_reason else []
    assert sorted(finished) == [0, 1, 2]
    assert len(set(texts)) == 1
    assert texts[0]


def test_a_stop_string_is_cut_off_and_never_shown_in_part(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": user("Count from 1 to 9."), "temperature": 0}
    whole = client.chat.completions.create(**ask).choices[0].message.content or ""
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    expected = whole[: whole.index(stop)]
    stopped = client.chat.completions.create(**ask, stop=[stop])
    streamed = client.chat.completions.create(**ask, stop=[stop], stream=True)
    assert stopped.choices[0].message.content == expected
    assert stopped.choices[0].finish_reason == "stop"
    assert "".join(choice.delta.content or "" for chunk in streamed for choice in chunk.choices) == expected


def test_logprobs_spell_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=user("What is 2 + 2?"), temperature=0, logprobs=True, top_logprobs=4
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content).startswith(answer.choices[0].message.content or "?")
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 4
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)


def test_an_evaluator_gets_the_prompt_scored(client: openai.OpenAI) -> None:
    prompt = "What is 1 + 1?"
    for max_tokens in (0, 1):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens, echo=True, logprobs=1)
        logprobs = answer.choices[0].logprobs
        assert answer.choices[0].text.startswith(prompt)
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.tokens is not None
        values: list[float | None] = [*logprobs.token_logprobs]
        assert values[0] is None
        assert all(value is not None and value <= 0 for value in values[1:])
        assert len(logprobs.tokens) == len(logprobs.token_logprobs)
        assert "".join(logprobs.tokens).startswith(prompt)


def test_two_hundred_requests_at_once_lose_nothing(server: Server) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=240) as client:

            async def ask(index: int) -> str:
                ask: dict[str, Any] = {"model": MODEL, "messages": user(f"What is {index} + 100?"), "temperature": 0}
                if index % 2:
                    answer = await client.chat.completions.create(**ask)
                    assert answer.choices[0].finish_reason == "stop"
                    return answer.choices[0].message.content or ""
                stream = await client.chat.completions.create(**ask, stream=True)
                return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])

            return await asyncio.gather(*(ask(index) for index in range(200)))

    texts = asyncio.run(ask_all())
    right = [str(index + 100) in re.findall(r"\d+", text) for index, text in enumerate(texts)]
    assert all(texts), "an empty answer"
    assert sum(right) >= 190
    wait_until_idle(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_aborted_within_a_second(server: Server, stream: bool) -> None:
    wait_until_idle(server)
    aborted = server.metric("penstock:request_success_total", finished_reason="abort")
    host = urllib.parse.urlsplit(server.url)
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": stream}).encode()
    connection = socket.create_connection((host.hostname or "", host.port or 0))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    while server.metric("penstock:num_requests_running") == 0:
        time.sleep(0.01)
    connection.close()
    closed_s = time.monotonic()
    while server.metric("penstock:num_requests_running") > 0:
        assert time.monotonic() - closed_s < 1
        time.sleep(0.02)
    assert server.metric("penstock:request_success_total", finished_reason="abort") == aborted + 1
    wait_until_idle(server)


BAD_REQUESTS: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "an unknown model": ({"model": "gpt-9"}, 404, "model"),
    "no messages": ({"messages": []}, 400, "messages"),
    "a negative temperature": ({"temperature": -1}, 400, "temperature"),
    "an infinite temperature, which is no JSON": ({"temperature": float("inf")}, 400, None),
    "a NaN top_p, which is no JSON": ({"top_p": float("nan")}, 400, None),
    "a temperature as text": ({"temperature": "NaN"}, 400, "temperature"),
    "a huge temperature": ({"temperature": 1e300}, 400, "temperature"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "too many choices": ({"n": 10**9}, 400, "n"),
    "a huge seed": ({"seed": 2**70}, 400, "seed"),
    "a token id out of range": ({"logit_bias": {"99999999": 1}}, 400, "logit_bias"),
    "a tool": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
    "a response format": ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    "more than the context": ({"messages": user("a b " * 20000)}, 400, "messages"),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_bad_input_is_refused_with_the_field_to_blame(server: Server, what: str) -> None:
    change, status, param = BAD_REQUESTS[what]
    got = post(server, json.dumps({"model": MODEL, "messages": user("Hi"), **change}).encode())
    assert got[0] == status, got
    error = json.loads(got[1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"\xff"', b"[" * 100_000, b'{"model": "\\ud800"}', b"1" * 10_000])
def test_a_body_that_is_no_request_is_a_400(server: Server, body: bytes) -> None:
    status, text = post(server, body)
    assert status == 400, text
    assert json.loads(text)["error"]["message"]


def post(server: Server, body: bytes) -> tuple[int, str]:
    """Status and body of a chat completion with exactly these bytes."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=30)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def test_a_300_mb_body_is_refused_before_it_is_read(server: Server) -> None:
    host = urllib.parse.urlsplit(server.url)
    with socket.create_connection((host.hostname or "", host.port or 0), timeout=5) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {300 << 20}\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_a_reader_of_the_log_that_leaves_does_not_end_the_server() -> None:
    port = free_port()
    command = [sys.executable, "-m", "penstock", "serve", "--device", "cpu", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        server = Server(f"http://127.0.0.1:{port}", process, Path("/dev/null"))
        try:
            server.wait_until_ready()
            assert post(server, json.dumps({"model": MODEL, "messages": user("Hi")}).encode())[0] == 200
        finally:
            process.terminate()
        assert process.wait(timeout=30) == 0


def test_every_frontend_answers_with_the_whole_servers_figures(server: Server, client: openai.OpenAI) -> None:
    wait_until_idle(server)
    before = server.metric("penstock:generation_tokens_total")
    answer = client.completions.create(model=MODEL, prompt="a", max_tokens=5, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert {server.metric("penstock:generation_tokens_total") for _ in range(10)} == {before + 5}

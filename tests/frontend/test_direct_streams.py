"""Streams written past ASGI, over real TCP connections, against the same streams through ASGI."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import pytest

from penstock.frontend.direct_writer import DirectWriter
from penstock.ipc.messages import FinishReason, RejectReason, Submit
from tests.frontend.fake_engine import FakeEngine, answer, reject
from tests.frontend.harness import Frontend, events, until
from tests.frontend.test_disconnect import listening

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def joined(response: httpx2.Response) -> dict[str | int, Any]:
    """What a stream says, however its tokens are divided into events."""
    *chunks, done = events(response)
    assert done == "[DONE]"
    said: dict[str | int, Any] = {"usage": [chunk["usage"] for chunk in chunks if not chunk["choices"]]}
    for chunk in chunks:
        said["last_usage"] = chunk.get("usage")
        for choice in chunk["choices"]:
            text, finish, tokens, ids = said.get(choice["index"], ("", None, [], []))
            assert finish is None
            text += choice["text"] if "text" in choice else choice["delta"].get("content", "")
            logprobs = choice["logprobs"] or {}
            tokens = tokens + (logprobs.get("content") or logprobs.get("tokens") or [])
            ids = ids + (choice.get("token_ids") or [])
            said[choice["index"]] = text, choice["finish_reason"], tokens, ids
    return said


VARIANTS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"stop": "wor"},
    {"stop": ["zz", "!"], "include_stop_str_in_output": True},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"continuous_usage_stats": True}},
    {"return_token_ids": True},
]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        *((path, fields) for path in (CHAT, COMPLETIONS) for fields in VARIANTS),
        (CHAT, {"logprobs": True, "top_logprobs": 2}),
        (COMPLETIONS, {"logprobs": 1}),
        (COMPLETIONS, {"echo": True}),
    ],
    ids=str,
)
async def test_a_stream_says_the_same_either_way(frontend: Frontend, path: str, fields: dict[str, Any]) -> None:
    frontend.engine.reply = list('Hello, \u20acw\u00f6rld "\\\n world!'.encode())
    frontend.engine.tokens_per_message = 1
    frontend.engine.delay_s = 0.001
    body = {**({"messages": MESSAGES} if path == CHAT else {"prompt": "hi", "max_tokens": 40}), "stream": True, **fields}
    through_asgi = await frontend.post(path, body)
    async with listening(frontend) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        direct = await http.post(path, json=body)
    assert joined(direct) == joined(through_asgi)


async def test_tokens_go_past_asgi(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = DirectWriter.write

    def spy(writer: DirectWriter, body: bytes) -> None:
        written.append(body)
        write(writer, body)

    monkeypatch.setattr(DirectWriter, "write", spy)
    frontend.engine.delay_s = 0.02
    async with listening(frontend) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        for _ in range(2):
            response = await http.post(CHAT, json={"messages": MESSAGES, "stream": True})
            assert joined(response)[0][0] == "Hello, world!"
    assert len(written) > 6
    assert any(body.endswith(b"data: [DONE]\n\n") for body in written)


async def test_a_client_that_has_fallen_behind_gets_tokens_joined(frontend: Frontend) -> None:
    num_messages, size = 1500, 10_000

    def flood(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        for index in range(num_messages):
            engine.send(identity, engine.outputs(submit.request_id, index * size, [65] * size))
            time.sleep(0.0005)
        engine.send(identity, engine.outputs(submit.request_id, num_messages * size, [], FinishReason.LENGTH))

    frontend.engine.script = flood
    body = {"messages": MESSAGES, "stream": True}
    async with (
        listening(frontend) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
        http.stream("POST", CHAT, json=body) as response,
    ):
        await until(lambda: frontend.service.client._open == {}, timeout_s=30)
        lines = [line async for line in response.aiter_lines() if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "A" * (num_messages * size)
    assert chunks[-1]["finish_reason"] == "length"
    assert len(chunks) < num_messages


async def test_a_failure_in_a_direct_stream_hurts_nobody_else(frontend: Frontend) -> None:
    def fail(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [72]))
        time.sleep(0.05)
        engine.send(identity, engine.outputs(submit.request_id, 1, [], FinishReason.ERROR, error="secret"))

    async with listening(frontend) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        frontend.engine.script = fail
        failed = await http.post(CHAT, json={"messages": MESSAGES, "stream": True})
        assert events(failed)[-1]["error"]["type"] == "server_error"
        assert "secret" not in failed.text
        frontend.engine.script = reject(RejectReason.OVERLOADED)
        assert (await http.post(CHAT, json={"messages": MESSAGES, "stream": True})).status_code == 503
        frontend.engine.script = answer
        assert joined(await http.post(CHAT, json={"messages": MESSAGES, "stream": True}))[0][0] == "Hello, world!"

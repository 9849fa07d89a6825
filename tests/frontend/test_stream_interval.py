"""--stream-interval: how many tokens share an event, over real TCP connections and through ASGI alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from penstock.ipc.messages import FinishReason, Submit
from tests.frontend.fake_engine import FakeEngine, logprobs_of
from tests.frontend.harness import Frontend, events, running_frontend
from tests.frontend.test_direct_streams import CHAT, COMPLETIONS, MESSAGES, VARIANTS, joined
from tests.frontend.test_disconnect import listening

REPLY = list(b"Hello, world! And so on")


async def streamed(frontend: Frontend, path: str, **fields: Any) -> httpx2.Response:
    """A stream's answer, over a connection of its own."""
    body = {**({"messages": MESSAGES} if path == CHAT else {"prompt": "hi"}), "max_tokens": 40, "stream": True, **fields}
    async with listening(frontend) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        return await http.post(path, json=body)


def token_by_token(frontend: Frontend) -> None:
    frontend.engine.reply = REPLY
    frontend.engine.tokens_per_message = 1
    frontend.engine.delay_s = 0.01


def sizes(response: httpx2.Response) -> list[int]:
    """Tokens of each event that has any."""
    choices = [choice for chunk in events(response)[:-1] for choice in chunk["choices"]]
    return [len(choice["token_ids"]) for choice in choices if choice.get("token_ids")]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_first_token_comes_alone_then_as_many_as_asked_for_then_the_rest(toy_model_dir: Path, path: str) -> None:
    async with running_frontend(toy_model_dir, stream_interval=5) as frontend:
        token_by_token(frontend)
        logprobs = {"logprobs": True} if path == CHAT else {"logprobs": 1}
        for fields in ({}, logprobs):
            assert sizes(await streamed(frontend, path, return_token_ids=True, **fields)) == [1, 5, 5, 5, 5, 2]
        texts = [
            choice["text"] if "text" in choice else choice["delta"].get("content")
            for chunk in events(await streamed(frontend, path))[:-1]
            for choice in chunk["choices"]
        ]
        assert [text for text in texts if text] == ["H", "ello,", " worl", "d! An", "d so ", "on"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        *((path, fields) for path in (CHAT, COMPLETIONS) for fields in VARIANTS),
        (CHAT, {"logprobs": True, "top_logprobs": 2}),
        (CHAT, {"logprobs": True, "stop": "wor"}),
        (COMPLETIONS, {"logprobs": 1, "stop": "wor"}),
        (COMPLETIONS, {"logprobs": 1, "echo": True}),
    ],
    ids=str,
)
async def test_a_stream_says_the_same_at_any_interval(toy_model_dir: Path, path: str, fields: dict[str, Any]) -> None:
    said = []
    for interval in (1, 4, 1000):
        async with running_frontend(toy_model_dir, stream_interval=interval) as frontend:
            token_by_token(frontend)
            frontend.engine.delay_s = 0.001
            frontend.engine.reply = list('Hello, \u20acw\u00f6rld "\\\n world!'.encode())
            said.append(joined(await streamed(frontend, path, **fields)))
            body = {**({"messages": MESSAGES} if path == CHAT else {"prompt": "hi"}), "max_tokens": 40, "stream": True}
            said.append(joined(await frontend.post(path, {**body, **fields})))
    assert all(one == said[0] for one in said)


async def test_the_first_token_waits_for_no_other(toy_model_dir: Path) -> None:
    seen = threading.Event()

    def hold(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        detail: dict[str, Any] = {"logprobs": logprobs_of(REPLY[:1], 0)} if submit.sampling.logprobs is not None else {}
        engine.send(identity, engine.outputs(submit.request_id, 0, REPLY[:1], **detail))
        assert seen.wait(10)
        engine.send(identity, engine.outputs(submit.request_id, 1, [], FinishReason.LENGTH))

    async with running_frontend(toy_model_dir, stream_interval=100) as frontend:
        frontend.engine.script = hold
        for fields in ({}, {"logprobs": True}):
            seen.clear()
            async with (
                listening(frontend) as port,
                httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
                http.stream("POST", CHAT, json={"messages": MESSAGES, "stream": True, **fields}) as response,
            ):
                async for line in response.aiter_lines():
                    if '"content":"H"' in line:
                        seen.set()
            assert seen.is_set()


async def test_what_was_held_back_comes_before_a_failure(toy_model_dir: Path) -> None:
    def fail(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        for index, token_id in enumerate(REPLY[:4]):
            engine.send(identity, engine.outputs(submit.request_id, index, [token_id]))
        engine.send(identity, engine.outputs(submit.request_id, 4, [], FinishReason.ERROR, error="broken"))

    async with running_frontend(toy_model_dir, stream_interval=100) as frontend:
        frontend.engine.script = fail
        *chunks, error = events(await streamed(frontend, CHAT))
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hell"
        assert error["error"]["type"] == "server_error"


async def test_an_answer_that_is_not_streamed_does_not_wait(toy_model_dir: Path) -> None:
    async with running_frontend(toy_model_dir, stream_interval=1000) as frontend:
        token_by_token(frontend)
        response = await frontend.chat(max_tokens=40, stop="wor")
        assert response.json()["choices"][0]["message"]["content"] == "Hello, "

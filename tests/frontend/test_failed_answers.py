from __future__ import annotations

from typing import Any

import openai
import pytest

from penstock.ipc.messages import FinishReason, RejectReason, Submit
from tests.frontend.fake_engine import FakeEngine, answer, reject
from tests.frontend.harness import Frontend, error_of, events

USER: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (RejectReason.INVALID, 400, None),
        (RejectReason.TOO_LONG, 400, "context_length_exceeded"),
        (RejectReason.OVERLOADED, 503, None),
        (RejectReason.DRAINING, 503, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_engines_refusal_is_an_http_status_also_for_a_stream(
    frontend: Frontend, reason: RejectReason, status: int, code: str | None, stream: bool
) -> None:
    frontend.engine.script = reject(reason, "the reason", "top_k")
    response = await frontend.chat(stream=stream)
    assert response.status_code == status
    error = error_of(response)
    assert error["message"] == "the reason"
    assert error["code"] == code
    assert ("retry-after" in response.headers) == (status == 503)
    if status == 400:
        assert error["param"] == "top_k"


async def test_a_failure_in_the_stream_is_an_event_and_no_done_follows(frontend: Frontend) -> None:
    def fail(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [72]))
        engine.send(identity, engine.outputs(submit.request_id, 1, [], FinishReason.ERROR, error="secret /path"))

    frontend.engine.script = fail
    response = await frontend.chat(stream=True)
    *chunks, last = events(response)
    assert chunks[1]["choices"][0]["delta"]["content"] == "H"
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in last["error"]["message"]


async def test_the_openai_client_raises_a_failure_in_the_stream(frontend: Frontend) -> None:
    def fail(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [72, 73]))
        engine.send(identity, engine.outputs(submit.request_id, 2, [], FinishReason.ERROR))

    frontend.engine.script = fail
    stream = await frontend.openai().chat.completions.create(model="toy", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="Internal error"):
        async for _ in stream:
            pass


async def test_a_failed_request_without_stream_is_a_500_without_details(frontend: Frontend) -> None:
    def fail(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [], FinishReason.ERROR, error="secret"))

    frontend.engine.script = fail
    response = await frontend.chat()
    assert response.status_code == 500
    assert "secret" not in response.text
    frontend.engine.script = answer
    assert (await frontend.chat()).status_code == 200

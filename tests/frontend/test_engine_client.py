from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.frontend import engine_link
from penstock.frontend.open_requests import Delta, EngineUnavailable, NewRequest, RequestFailed, RequestRejected
from penstock.ipc.messages import FinishReason, Outputs, RejectReason, Sampling, Submit
from tests.frontend.fake_engine import FakeEngine, answer, never_finish, reject, say_nothing
from tests.frontend.harness import Frontend, error_of, events, running_frontend, until


def new_request(**sampling: Any) -> NewRequest:
    return NewRequest(prompt_token_ids=array("i", [1, 2, 3]), sampling=Sampling(**{"seed": 1, "max_tokens": 16, **sampling}))


async def read(frontend: Frontend, **sampling: Any) -> list[Delta]:
    """All deltas of one request, read as fast as they come."""
    stream = await frontend.service.client.submit([new_request(**sampling)], frontend.engine.ready())
    try:
        return [delta async for _, delta in stream]
    finally:
        stream.close()


def tokens_of(deltas: list[Delta]) -> bytes:
    return bytes(token_id for delta in deltas for token_id in delta.token_ids)


@pytest.fixture
async def silent_limits(monkeypatch: pytest.MonkeyPatch, toy_model_dir: Path) -> AsyncIterator[Frontend]:
    """A frontend that loses patience fast."""
    monkeypatch.setattr(engine_link, "HEARTBEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(engine_link, "LEASE_TIMEOUT_S", 0.7)
    monkeypatch.setattr(engine_link, "SILENCE_LIMIT_S", 1.5)
    async with running_frontend(toy_model_dir) as frontend:
        yield frontend


async def test_a_request_is_read_to_its_end(frontend: Frontend) -> None:
    deltas = await read(frontend)
    assert tokens_of(deltas) == b"Hello, world!"
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert deltas[0].num_cached_tokens == 1
    assert frontend.engine.aborted_ids == []


async def test_a_slow_reader_gets_one_merged_delta(frontend: Frontend) -> None:
    stream = await frontend.service.client.submit([new_request(logprobs=1)], frontend.engine.ready())
    await until(lambda: not frontend.service.client._open)
    deltas = [delta async for _, delta in stream]
    assert len(deltas) == 1
    assert tokens_of(deltas) == b"Hello, world!"
    assert [row.token_ids for row in deltas[0].logprobs] == [(token_id, 65) for token_id in b"Hello, world!"]


async def test_a_gap_fails_the_request_and_aborts_it(frontend: Frontend) -> None:
    def lose_one(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [72]))
        engine.send(identity, engine.outputs(submit.request_id, 2, [73]))

    frontend.engine.script = lose_one
    with pytest.raises(RequestFailed, match="lost the tokens 1 to 1"):
        await read(frontend)
    await until(lambda: frontend.engine.aborted_ids == [1])
    frontend.engine.script = answer
    assert tokens_of(await read(frontend)) == b"Hello, world!"


async def test_duplicates_are_harmless(frontend: Frontend) -> None:
    def repeat(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        def send(position: int, data: bytes, finish: int = 0) -> None:
            engine.send(identity, engine.outputs(submit.request_id, position, list(data), finish))

        send(0, b"Hel")
        send(0, b"Hel")
        send(1, b"e")
        send(2, b"ll")
        send(0, b"Hello", FinishReason.LENGTH)
        send(0, b"Hello", FinishReason.LENGTH)

    frontend.engine.script = repeat
    assert tokens_of(await read(frontend)) == b"Hello"


async def test_a_message_of_several_requests_reaches_each(frontend: Frontend) -> None:
    submits: list[Submit] = []

    def both_at_once(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        submits.append(submit)
        if len(submits) == 2:
            engine.send(
                identity,
                Outputs(
                    engine_boot_id=engine.boot_id,
                    request_ids=array("i", [submits[0].request_id, 999, submits[1].request_id]).tobytes(),
                    positions=array("i", [0, 0, 0]).tobytes(),
                    counts=array("i", [2, 1, 3]).tobytes(),
                    token_ids=array("i", [1, 2, 9, 3, 4, 5]).tobytes(),
                    finish_reasons=bytes([FinishReason.LENGTH, 0, FinishReason.STOP]),
                ),
            )

    frontend.engine.script = both_at_once
    stream = await frontend.service.client.submit([new_request(), new_request()], frontend.engine.ready())
    read_tokens = {index: delta.token_ids async for index, delta in stream}
    assert read_tokens == {0: [1, 2], 1: [3, 4, 5]}


async def test_a_rejection_carries_reason_and_param(frontend: Frontend) -> None:
    frontend.engine.script = reject(RejectReason.TOO_LONG, "too long", "prompt")
    with pytest.raises(RequestRejected) as caught:
        await read(frontend)
    assert (caught.value.reason, caught.value.message, caught.value.param) == (RejectReason.TOO_LONG, "too long", "prompt")


async def test_an_abort_by_the_engine_is_a_failure(frontend: Frontend) -> None:
    def abort(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [], FinishReason.ABORT))

    frontend.engine.script = abort
    with pytest.raises(RequestFailed):
        await read(frontend)


async def test_closing_a_stream_aborts_what_runs_and_only_that(frontend: Frontend) -> None:
    frontend.engine.script = never_finish
    stream = await frontend.service.client.submit([new_request(), new_request()], frontend.engine.ready())
    stream.stop(0)
    await until(lambda: frontend.engine.aborted_ids == [1])
    stream.close()
    await until(lambda: frontend.engine.aborted_ids == [1, 2])
    stream.close()
    frontend.engine.script = answer
    await read(frontend)
    assert frontend.engine.aborted_ids == [1, 2]


async def test_a_cancelled_reader_leaves_nothing_open(frontend: Frontend) -> None:
    frontend.engine.script = never_finish
    reading = asyncio.create_task(read(frontend))
    await until(lambda: len(frontend.engine.submits) == 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: frontend.engine.aborted_ids == [1])
    assert frontend.service.client._open == {}


async def test_open_requests_fail_when_the_engines_process_ends(frontend: Frontend) -> None:
    frontend.engine.script = never_finish
    responses = [asyncio.create_task(frontend.chat(stream=stream)) for stream in (True, False)]
    await until(lambda: len(frontend.engine.submits) == 2)
    await asyncio.sleep(0.1)
    frontend.engine.stop()
    streamed, whole = await asyncio.gather(*responses)
    assert (await frontend.http.get("/readyz")).status_code == 503
    assert events(streamed)[-1]["error"]["type"] == "service_unavailable"
    assert whole.status_code == 503
    assert "retry-after" in whole.headers
    error_of(whole)
    refused = await frontend.chat()
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    frontend.engine.start()


async def test_another_engine_is_taken_with_its_own_facts(frontend: Frontend) -> None:
    frontend.engine.restart(served_model_names=("other",), max_model_len=64)
    await until(lambda: frontend.service.client.facts == frontend.engine.ready() and frontend.service.is_ready)
    assert (await frontend.chat(model="toy")).status_code == 404
    assert (await frontend.chat(model="other")).json()["model"] == "other"
    assert frontend.engine.submits[-1].sampling.max_tokens < 64


async def test_requests_made_for_another_engine_are_not_submitted(frontend: Frontend) -> None:
    old_facts = frontend.engine.ready()
    frontend.engine.restart()
    await until(lambda: frontend.service.client.facts == frontend.engine.ready())
    with pytest.raises(EngineUnavailable, match="restarted"):
        await frontend.service.client.submit([new_request()], old_facts)
    assert frontend.engine.submits == []


async def test_outputs_of_an_unknown_engine_are_never_taken(frontend: Frontend) -> None:
    def speak_as_another(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        own, engine.boot_id = engine.boot_id, b"impostor"
        engine.send(identity, engine.outputs(submit.request_id, 0, [72], FinishReason.LENGTH))
        engine.boot_id = own

    frontend.engine.script = speak_as_another
    with pytest.raises(EngineUnavailable, match="restarted"):
        await read(frontend)
    await until(lambda: frontend.service.is_ready)


async def test_silence_flips_readiness_first_and_fails_requests_later(silent_limits: Frontend) -> None:
    frontend = silent_limits
    frontend.engine.script = say_nothing
    reading = asyncio.create_task(read(frontend))
    await until(lambda: len(frontend.engine.submits) == 1)
    frontend.engine.is_silent = True
    await until(lambda: not frontend.service.is_ready)
    assert not reading.done()
    with pytest.raises(EngineUnavailable, match="silent"):
        await reading
    with pytest.raises(EngineUnavailable):
        await read(frontend)
    frontend.engine.is_silent = False
    await until(lambda: frontend.service.is_ready)
    await until(lambda: 1 in frontend.engine.aborted_ids)
    frontend.engine.script = answer
    assert (await frontend.chat()).status_code == 200


async def test_a_short_silence_costs_nothing(silent_limits: Frontend) -> None:
    frontend = silent_limits
    frontend.engine.script = never_finish
    stream = await frontend.service.client.submit([new_request()], frontend.engine.ready())
    await anext(stream)
    frontend.engine.is_silent = True
    await until(lambda: not frontend.service.is_ready)
    frontend.engine.is_silent = False
    await until(lambda: frontend.service.is_ready)
    assert len(frontend.service.client._open) == 1
    stream.close()


async def test_an_unreadable_message_fails_what_is_open(frontend: Frontend) -> None:
    def speak_nonsense(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine._data.socket.send_multipart((identity, b"\xff\xff"))

    frontend.engine.script = speak_nonsense
    with pytest.raises(EngineUnavailable, match="unreadable"):
        await read(frontend)
    frontend.engine.script = answer
    assert tokens_of(await read(frontend)) == b"Hello, world!"


async def test_an_engine_of_another_protocol_is_not_served(toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_link, "PROTOCOL_VERSION", 2)
    with pytest.raises(AssertionError, match="waited in vain"):
        async with running_frontend(toy_model_dir, ready_timeout_s=1.0):
            pass


async def test_heartbeats_carry_the_responses_and_goodbye_ends_them(toy_model_dir: Path) -> None:
    async with running_frontend(toy_model_dir) as frontend:
        await frontend.chat()
        await frontend.http.get("/nowhere")
        await until(lambda: "other 404" in frontend.engine.http_responses)
        assert frontend.engine.http_responses["/v1/chat/completions 200"] == 1
        await frontend.service.close()
        await until(lambda: len(frontend.engine.goodbyes) == 1)
        assert frontend.engine.goodbyes[0].startswith(b"frontend:")
        await frontend.service.start()


async def test_a_finished_request_leaves_nothing_behind(frontend: Frontend) -> None:
    for _ in range(3):
        await frontend.chat()
    client = frontend.service.client
    assert client._open == {}
    assert client._to_abort == {}

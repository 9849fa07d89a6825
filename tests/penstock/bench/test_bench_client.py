"""The HTTP client and the reading of answers, against servers that behave and servers that do not."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.bench.answers import StreamAnswer
from penstock.bench.client import ApiClient
from penstock.bench.records import Record
from penstock.bench.settings import CHAT, COMPLETIONS, Target
from tests.penstock.bench.scripted_server import ScriptedServer, scripted_server

NUM_TOKENS = 6


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as running:
        yield running


def new_record() -> Record:
    return Record(index=0, turn=0, wanted_tokens=NUM_TOKENS, start=0.0, due=None)


async def complete(server: ScriptedServer, model: str, *, timeout_s: float = 10.0) -> Record:
    client = ApiClient(Target(base_url=server.url, model=model, request_timeout_s=timeout_s))
    record = new_record()
    await client.complete("[1,2,3]", record)
    client.close()
    return record


@pytest.mark.parametrize("model", ["fine", "crlf", "unframed"])
async def test_a_whole_answer_is_timed_and_counted(server: ScriptedServer, model: str) -> None:
    record = await complete(server, model)
    assert record.error is None
    assert (record.num_input, record.num_output, record.num_chunks) == (3, NUM_TOKENS, NUM_TOKENS)
    assert record.has_usage
    assert record.first is not None
    assert record.last is not None
    assert record.end is not None
    assert record.start < record.first < record.last <= record.end
    assert sum(record.gaps_s) == pytest.approx(record.last - record.first, abs=1e-4)
    assert record.tpot_s == pytest.approx((record.last - record.first) / (NUM_TOKENS - 1))


async def test_several_tokens_in_a_chunk_are_counted_by_usage(server: ScriptedServer) -> None:
    record = await complete(server, "several")
    assert (record.num_output, record.num_chunks) == (NUM_TOKENS, 2)
    assert record.last is not None
    assert record.first is not None
    assert record.tpot_s == pytest.approx((record.last - record.first) / (NUM_TOKENS - 1))


async def test_without_usage_chunks_are_counted(server: ScriptedServer) -> None:
    record = await complete(server, "no-usage")
    assert record.error is None
    assert (record.num_output, record.has_usage) == (NUM_TOKENS, False)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("500", "HTTP 500: {"),
        ("dies", "the connection was closed in the middle of the answer"),
        ("error-event", "out of luck"),
        ("nonsense", "not an event of this API: {nonsense"),
        ("no-stream", "no token came {"),
        ("not-http", "does not speak HTTP/1.1"),
    ],
)
async def test_what_a_server_does_wrong_is_said(server: ScriptedServer, model: str, complaint: str) -> None:
    record = await complete(server, model)
    assert record.error is not None
    assert complaint in record.error


async def test_a_server_that_never_answers_is_given_up(server: ScriptedServer) -> None:
    record = await complete(server, "silent", timeout_s=0.1)
    assert record.error == "no whole answer in 0.1 s"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
async def test_https_needs_a_certificate_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with scripted_server(tls) as server:
        record = await complete(server, "fine")
        assert record.error is not None
        assert "CERTIFICATE_VERIFY_FAILED" in record.error
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        record = await complete(server, "fine")
        assert record.error is None
        assert record.num_chunks == NUM_TOKENS


async def test_no_server_is_an_error_of_the_request() -> None:
    client = ApiClient(Target(base_url="http://127.0.0.1:1/v1", model="fine"))
    record = new_record()
    await client.complete("[1]", record)
    assert record.error is not None
    assert record.end is not None


async def test_connections_are_used_again_and_a_failed_one_is_not(server: ScriptedServer) -> None:
    client = ApiClient(Target(base_url=server.url, model="fine", api_key="secret"))
    for _ in range(3):
        await client.complete("[1]", new_record())
    assert server.num_connections == 1
    assert all("Authorization: Bearer secret\r\n" in head for head in server.headers)
    client.close()


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced(server: ScriptedServer) -> None:
    client = ApiClient(Target(base_url=server.url, model="unframed"))
    for _ in range(2):
        record = new_record()
        await client.complete("[1]", record)
        assert record.error is None
    assert server.num_connections == 2
    client.close()


async def test_a_chats_first_token_is_not_its_role(server: ScriptedServer) -> None:
    client = ApiClient(Target(base_url=server.url, model="fine", endpoint=CHAT))
    record = new_record()
    said = await client.chat([{"role": "user", "content": "a b"}], record, keep_text=True)
    assert said == "ab" * NUM_TOKENS
    assert record.num_chunks == NUM_TOKENS
    client.close()


async def test_fields_of_the_request_are_those_asked_for(server: ScriptedServer) -> None:
    target = Target(base_url=server.url, model="fine", ignore_eos=False, include_usage=False, extra_body={"top_p": 0.5})
    for changed in (target, replace(target, ignore_eos=True, include_usage=True, extra_body={})):
        client = ApiClient(changed)
        await client.complete("[1,2]", new_record())
        client.close()
    common = {"model": "fine", "temperature": 0.0, "stream": True, "prompt": [1, 2], "max_tokens": NUM_TOKENS}
    assert server.bodies[0] == common | {"top_p": 0.5}
    assert server.bodies[1] == common | {"ignore_eos": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("endpoint", [COMPLETIONS, CHAT])
def test_events_may_be_cut_anywhere(endpoint: str) -> None:
    shape = '{"choices":[{"text":"%s","finish_reason":%s}]}' if endpoint == COMPLETIONS else None
    shape = shape or '{"choices":[{"delta":{"content":"%s"},"finish_reason":%s}]}'
    usage = '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    events = [shape % ('a \\"finish_reason\\":null', "null"), shape % ("é", '"stop"'), shape % ("", '"stop"'), usage, "[DONE]"]
    data = "".join(f"data: {event}\n\n" for event in events).encode()
    for cut in range(len(data)):
        answer = StreamAnswer(endpoint)
        answer.feed(1.0, data[:cut])
        answer.feed(2.0, data[cut:])
        assert answer.finish() is None
        assert len(answer.gaps) == 1
        assert answer.usage == {"prompt_tokens": 1, "completion_tokens": 2}
        assert answer.done


@pytest.mark.parametrize(
    "event", ["[]", "3", '{"choices": 5}', '{"choices": [3]}', '{"choices": [{"delta": "x"}]}', '{"choices"']
)
def test_an_event_of_another_form_is_an_error_and_no_exception(event: str) -> None:
    answer = StreamAnswer(CHAT, keep_text=True)
    answer.feed(1.0, f"data: {event}\n\n".encode())
    assert "not an event of this API" in (answer.finish() or "")


def test_a_text_that_is_none_is_not_kept() -> None:
    answer = StreamAnswer(CHAT, keep_text=True)
    answer.feed(1.0, b'data: {"choices": [{"delta": {"content": [1]}}]}\n\n')
    assert answer.text == ""


def test_a_token_that_is_half_a_character_is_an_arrival() -> None:
    answer = StreamAnswer(COMPLETIONS)
    answer.feed(1.0, b'data: {"choices": [{"text": "", "finish_reason": null}]}\n\n')
    assert answer.first == 1.0

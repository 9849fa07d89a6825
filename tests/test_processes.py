"""`penstock serve` when its processes die or are told to stop, with the truthful toy model: right tokens or a clear error."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server, running_server
from tests.toy_model import make_toy_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def ask(server: Server, **request: Any) -> urllib.request.Request:
    """A streamed completion, not yet sent."""
    body = json.dumps({"model": "toy", "stream": True, "max_tokens": 64, "ignore_eos": True, **request}).encode()
    return urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})


def stream(server: Server, **request: Any) -> tuple[list[dict[str, Any]], bool]:
    """The events of a streamed completion, and whether [DONE] came."""
    events, done = [], False
    with urllib.request.urlopen(ask(server, **request), timeout=60) as response:
        for line in response:
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            done = done or data == b"[DONE]"
            if data and data != b"[DONE]":
                events.append(json.loads(data))
    return events, done


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for event in events for choice in event["choices"])


def in_background(server: Server, results: list[Any], count: int, **request: Any) -> list[threading.Thread]:
    """Starts `count` streams of different prompts; each appends what it got, by index."""

    def run(index: int) -> None:
        results[index] = stream(server, prompt=[index + 1] * (index + 5), **request)

    results[:] = [None] * count
    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    return threads


def wait_for_tokens(server: Server, at_least: int) -> None:
    deadline = time.monotonic() + 20
    while server.metric("penstock:generation_tokens_total") < at_least:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def slow_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model(tmp_path_factory.mktemp("slow") / "toy", step_time_s=0.02)


@pytest.mark.parametrize("frontends", ["1", "3"])
def test_texts_are_the_same_from_one_frontend_or_three(frontends: str, tmp_path: Path) -> None:
    with running_server(
        str(make_toy_model(tmp_path / "toy")), "--served-model-name", "toy", "--frontends", frontends
    ) as server:
        alone = [text_of(stream(server, prompt=[index + 1] * (index + 5))[0]) for index in range(12)]
        results: list[Any] = []
        for thread in in_background(server, results, 12):
            thread.join()
        assert [text_of(events) for events, _ in results] == alone
        assert len(set(alone)) == 12
        assert all(done for _, done in results)


def test_a_killed_frontend_is_restarted_and_its_requests_are_reaped(slow_toy: Path) -> None:
    with running_server(str(slow_toy), "--served-model-name", "toy", "--frontends", "1") as server:
        body = json.dumps(
            {"model": "toy", "prompt": [1, 2, 3], "max_tokens": 2000, "stream": True, "ignore_eos": True}
        ).encode()
        asked = urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as response:
            response.readline()
            (frontend,) = server.children("frontend")
            os.kill(frontend, signal.SIGKILL)
        server.wait_until_ready(20)
        assert server.children("frontend") != [frontend]
        deadline = time.monotonic() + 8
        while server.metric("penstock:kv_blocks", state="owned") > 0:
            assert time.monotonic() < deadline, "the orphan still owns blocks"
            time.sleep(0.1)
        assert stream(server, prompt=[5])[1]


def test_a_killed_engine_ends_open_streams_with_an_error_and_comes_back(slow_toy: Path) -> None:
    with running_server(str(slow_toy), "--served-model-name", "toy", "--frontends", "2") as server:
        expected = text_of(stream(server, prompt=[9, 9])[0])
        results: list[Any] = []
        threads = in_background(server, results, 6, max_tokens=1000)
        wait_for_tokens(server, 200)
        (engine,) = server.children("engine")
        os.kill(engine, signal.SIGKILL)
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive(), "a stream hangs"
        for events, done in results:
            assert not done
            assert events[-1]["error"]["message"]
        server.wait_until_ready(30)
        assert server.children("engine") != [engine]
        assert text_of(stream(server, prompt=[9, 9])[0]) == expected


def test_readyz_says_503_while_the_engine_is_away(slow_toy: Path) -> None:
    with running_server(str(slow_toy), "--served-model-name", "toy") as server:
        (engine,) = server.children("engine")
        os.kill(engine, signal.SIGSTOP)
        deadline = time.monotonic() + 8
        while server.get("/readyz")[0] != 503:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.get("/livez")[0] == 200
        os.kill(engine, signal.SIGCONT)
        server.wait_until_ready(10)


def test_sigterm_lets_open_streams_finish(slow_toy: Path) -> None:
    with running_server(str(slow_toy), "--served-model-name", "toy", "--frontends", "2") as server:
        results: list[Any] = []
        threads = in_background(server, results, 8, max_tokens=150)
        wait_for_tokens(server, 100)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(timeout=30)
        assert server.process.wait(timeout=30) == 0, server.log
        for events, done in results:
            assert done
            assert [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]] == ["length"]


def test_nothing_is_left_when_the_supervisor_is_killed(slow_toy: Path) -> None:
    with pytest.raises(AssertionError), running_server(str(slow_toy), "--served-model-name", "toy") as server:  # noqa: PT012
        children = server.children("engine") + server.children("frontend")
        assert len(children) >= 2
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            if time.monotonic() > deadline:
                pytest.fail("children outlive their supervisor")
            time.sleep(0.05)

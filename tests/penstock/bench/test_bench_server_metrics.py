"""Counters of the server's own, in Prometheus' text format."""

from __future__ import annotations

import pytest

from penstock.bench import server_metrics
from penstock.bench.server_metrics import COUNTERS, increase_since, parse, read
from tests.penstock.bench.scripted_server import scripted_server

NAME = COUNTERS["retokenized_tokens"]


def test_samples_of_a_counter_are_added_up_and_others_left_out() -> None:
    text = f'# HELP {NAME} x\n{NAME}{{frontend="a b"}} 3.0\n{NAME}{{frontend="1"}} 4e1\n{NAME}_created 7\nother 1\nnonsense\n'
    assert parse(text) == {"retokenized_tokens": 43.0}
    assert parse("<html>no metrics here 5</html>") == {}
    assert parse(f"{NAME} what") == {}


async def test_a_loads_share_is_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "_SETTLING_S", 0.0)
    async with scripted_server() as server:
        assert await read(server.url, None) == {}
        server.metrics = f"{NAME} 5\n"
        before = await read(server.url, "secret")
        server.metrics = f"{NAME} 12\n"
        assert await increase_since(before, server.url, None) == {"retokenized_tokens": 7}
        server.metrics = f"{NAME} 1\n"
        assert await increase_since(before, server.url, None) == {}
        assert await increase_since({}, server.url, None) == {}
        assert "Authorization: Bearer secret" in server.headers[1]
    assert await read("http://127.0.0.1:1/v1", None) == {}

"""Counters of the server's own, in Prometheus' text format."""

from __future__ import annotations

import pytest

from penstock.bench import server_metrics
from penstock.bench.records import Record
from penstock.bench.report import tokenizing
from penstock.bench.server_metrics import COUNTERS, increase, parse, read, read_settled
from tests.penstock.bench.scripted_server import scripted_server

NAME, LABEL = COUNTERS["prompt_tokens_encoded"]


def test_samples_of_a_counter_are_added_up_and_others_left_out() -> None:
    samples = (f'{NAME}{{{LABEL},frontend="a b"}} 3.0', f'{NAME}{{frontend="1",{LABEL}}} 4e1', f'{NAME}{{source="else"}} 9')
    text = "\n".join((f"# HELP {NAME} x", *samples, f"{NAME} 8", f"{NAME}_created{{{LABEL}}} 7", "other 1", "nonsense"))
    assert parse(text) == {"prompt_tokens_encoded": 43.0}
    assert parse("<html>no metrics here 5</html>") == {}
    assert parse(f"{NAME}{{{LABEL}}} what") == {}


async def test_what_a_server_does_not_count_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "_SETTLING_S", 0.0)
    async with scripted_server() as server:
        assert await read_settled(server.url, None) == {}
        server.metrics = f"{NAME}{{{LABEL}}} 5\n"
        assert await read_settled(server.url, "secret") == {"prompt_tokens_encoded": 5}
        assert "Authorization: Bearer secret" in server.headers[-1]
    assert await read("http://127.0.0.1:1/v1", None) == {}


def test_a_loads_share_is_what_was_added() -> None:
    assert increase({"a": 5.0, "b": 7.0}, {"a": 12.0, "b": 1.0, "c": 2.0}) == {"a": 7, "c": 2}
    assert increase({}, {}) == {}


def test_only_what_a_conversations_last_prompt_has_not_was_tokenized_again() -> None:
    turns = [(0, 100), (0, 150), (1, 80), (1, 120)]
    records = [Record(index=i, turn=0, wanted_tokens=1, start=0.0, due=None, num_input=count) for i, count in turns]
    assert tokenizing(records, {"prompt_tokens_encoded": 300}, 0)["prompt_tokens_encoded_again"] == 30
    assert tokenizing(records, {"prompt_tokens_encoded": 300}, 50)["prompt_tokens_encoded_again"] == 80
    assert tokenizing(records, {"prompt_tokens_encoded": 200}, 0)["prompt_tokens_encoded_again"] == 0
    assert tokenizing(records, {}, 0) == {}

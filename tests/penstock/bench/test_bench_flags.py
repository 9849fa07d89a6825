"""The command line of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.bench.flags import BenchOptions, parse
from penstock.bench.settings import CHAT, COMPLETIONS, BenchError, Load, Slo


def options(*arguments: str) -> BenchOptions:
    return parse(arguments, {})


def test_without_flags_it_is_a_closed_loop_against_this_machine() -> None:
    given = options()
    assert given.target.base_url == "http://127.0.0.1:8000/v1"
    assert given.target.endpoint == COMPLETIONS
    assert given.loads == (Load(concurrency=16),)
    assert given.works[0].num_prompts == 160
    assert given.works[0].lengths == "sharegpt"


def test_lists_make_sweeps_with_requests_for_each_load() -> None:
    given = options("--concurrency", "1,8,64")
    assert [load.concurrency for load in given.loads] == [1, 8, 64]
    assert [work.num_prompts for work in given.works] == [100, 100, 640]
    given = options("--request-rate", "1,inf", "--max-concurrency", "32")
    assert given.loads == (Load(concurrency=32, request_rate=1.0), Load(concurrency=32, request_rate=float("inf")))


def test_agents_are_conversations_over_chat() -> None:
    work, target = options("--lengths", "agents", "--concurrency", "8").works[0], options("--lengths", "agents").target
    assert (work.turns, work.shared_prefix_tokens, work.num_prompts, target.endpoint) == (10, 2048, 8, CHAT)
    work = options("--lengths", "agents", "--turns", "3", "--shared-prefix-len", "64").works[0]
    assert (work.turns, work.shared_prefix_tokens) == (3, 64)


def test_sampling_fields_are_sent_where_given_and_the_extra_body_has_the_last_word() -> None:
    assert options().target.extra_body == {}
    given = options("--top-k", "20", "--min-p", "0.1", "--extra-body", '{"min_p": 0.2}')
    assert given.target.extra_body == {"top_k": 20, "min_p": 0.2}


def test_limits_keys_and_files() -> None:
    given = parse(["--goodput", "ttft:200", "tpot:20", "--json", "a.json", "--plot", "a.png"], {"OPENAI_API_KEY": "secret"})
    assert given.slo == Slo(ttft_ms=200, tpot_ms=20)
    assert given.target.api_key == "secret"
    assert (given.json_path, given.plot_path) == (Path("a.json"), Path("a.png"))
    assert parse(["--api-key", "mine"], {"OPENAI_API_KEY": "secret"}).target.api_key == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurency", "3"], "did you mean --concurrency?"),
        (["--concurrency", "0"], "--concurrency"),
        (["--request-rate", "-1"], "a rate is above 0"),
        (["--request-rate", "nan"], "a rate is above 0"),
        (["--goodput", "ttf:3"], "is not ttft:MS, tpot:MS or e2e:MS"),
        (["--goodput", "ttft:x"], "'x' is not a number"),
        (["--extra-body", "[]"], "is not a JSON object"),
        (["--extra-body", '{"top_p": NaN}'], "is not a JSON object"),
        (["--turns", "3", "--endpoint", "completions"], "need --endpoint chat"),
        (["--endpoint", "chat", "--vocab-size", "1000"], "for --endpoint completions"),
        (["--think-time", "1"], "it needs --turns"),
        (["--repeat", "0"], "0 is not between 1 and 1000"),
        (["--warmup", "-1"], "-1 is not between 0"),
        (["--top-p", "nan"], "is not a finite number"),
    ],
)
def test_what_is_not_understood_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options(*arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--lengths", "long"], ["--base-url", "ftp://x"], ["--concurrency", "1,2", "--request-rate", "1,2"]]
)
def test_what_cannot_be_is_an_error(arguments: list[str]) -> None:
    with pytest.raises(BenchError):
        options(*arguments)


def test_help_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options("--help")
    assert ended.value.code == 0
    assert "--request-rate R[,R...]" in capsys.readouterr().out

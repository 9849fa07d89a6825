"""The HTTP table's runner: which rows it runs when, what it makes of the figures, servers that start and end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import bench_http
from scripts.http_rows import MODELS, ROWS, Model, Row
from scripts.http_table import headline, table
from tests.toy_model import make_toy_model

LOADGEN = """
import json, sys, urllib.request
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
body = {"model": flags["--model"], "prompt": [40, 41], "max_tokens": 3, "ignore_eos": True}
url, json_type = flags["--url"] + "/v1/completions", {"Content-Type": "application/json"}
request = urllib.request.Request(url, json.dumps(body).encode(), json_type)
answer = json.load(urllib.request.urlopen(request))
print(json.dumps({"label": "", "kind": "serve", "requests": int(flags["-n"]), "errors": 0, "wrong_length": 0,
    "out_tok_s": 10.0, "window_out_tok_s": 20.0 + int(flags["--seed"]), "ttft_p50_ms": 5.0, "tpot_p50_ms": 1.0,
    "client_cpu_share": 0.1, "tokens": answer["usage"]["completion_tokens"], "flags": flags}))
"""
TOY = Model(name="toy", hidden_size=8, num_layers=1, vocab_size=272)


def row(clients: int, **others: Any) -> Row:
    values: dict[str, Any] = {"model": "toy", "num_requests": 20 * clients, "ideal": 100.0, "vllm": 10.0, "vllm_ttft_ms": 50.0}
    return Row(**{"clients": clients, "goal": 40.0, "goal_ttft_ms": 8.0, **values, **others})


def run_of(one: Row, **figures: Any) -> dict[str, Any]:
    known = {"requests": 9, "errors": 0, "wrong_length": 0, "out_tok_s": 12.0, "ttft_p50_ms": 5.0, "tpot_p50_ms": 2.0}
    cpu = {"engine": 0.5, "frontends": 1.5}
    return {"row": one.name, "short": False, "cpu_cores": cpu, "figures": {**known, "client_cpu_share": 0.2, **figures}}


def test_every_row_is_of_a_known_model_and_has_its_own_name() -> None:
    assert {one.model for one in ROWS} == {model.name for model in MODELS}
    assert len({one.name for one in ROWS}) == len(ROWS)
    for one in ROWS:
        assert one.requests(short=True) <= one.num_requests
        assert one.clients == 1 or one.requests(short=True) > 2 * one.clients, "else there is no window"
        better = one.goal < one.vllm if one.clients == 1 else one.goal > one.vllm
        assert better
        assert one.goal_ttft_ms < one.vllm_ttft_ms


def test_models_are_known_by_their_shape_and_come_in_the_order_of_the_rows(tmp_path: Path) -> None:
    for model in reversed(MODELS):
        shape = {"hidden_size": model.hidden_size, "num_hidden_layers": model.num_layers, "vocab_size": model.vocab_size}
        (tmp_path / model.name).mkdir()
        (tmp_path / model.name / "config.json").write_text(json.dumps(shape))
    found = bench_http.in_order(sorted(tmp_path.iterdir()))
    assert [model.name for _, model in found] == list(dict.fromkeys(one.model for one in ROWS))
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(SystemExit, match="no row of the table"):
        bench_http.identify(tmp_path)


def test_the_table_has_medians_and_says_what_is_no_figure() -> None:
    many, one_client, unmeasured = row(4), row(1, vllm=4.0, goal=1.0), row(8)
    runs = [run_of(many, window_out_tok_s=speed) for speed in (30.0, 10.0, 20.0)]
    runs += [run_of(one_client, client_cpu_share=0.9, errors=2)]
    head, _, first, second = table(runs, (many, one_client, unmeasured)).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    cells = dict(zip(columns[:11], [cell.strip() for cell in first.strip("|").split("|")], strict=False))
    assert cells["tok/s in the window, of 1 client ms/token"] == "20.00"
    assert (cells["lowest to highest"], cells["x vLLM"], cells["of the goal"]) == ("10.00 to 30.00", "2.00", "50%")
    assert "0.90 too busy" in second
    assert "| 2.00 | 50% |" in second.replace("4.00 | ", "", 1).replace("1.00 | ", "", 1)
    assert headline(many, run_of(many)["figures"]) == 12.0
    assert "(12.00)" in table([run_of(many)], (many,))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    model_dir = make_toy_model(tmp_path / "toy")
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"hidden_size": 8, "num_hidden_layers": 1}))
    loadgen = tmp_path / "loadgen.py"
    loadgen.write_text(LOADGEN)
    monkeypatch.setattr(bench_http, "MODELS", (TOY,))
    monkeypatch.setattr(bench_http, "ROWS", (row(4, goal=4e3), row(1, goal=1.0), row(64, goal=0.001, shared_prefix=7)))
    return ["bench_http", str(model_dir), "--loadgen", str(loadgen), "--out", str(tmp_path / "out.jsonl")]


def test_without_time_nothing_is_started_and_everything_is_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [*command, "--budget-s", "5"])
    assert bench_http.main() == 1
    assert capsys.readouterr().out.count("skipped: toy") == 3


@pytest.mark.slow
def test_rows_are_run_on_a_real_server_as_long_as_there_is_time(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_process_left: str,
) -> None:
    flags = ["--repeat", "2", "--budget-s", "600", "--", "--max-model-len", "256"]
    monkeypatch.setattr("sys.argv", [*command, *flags])
    assert bench_http.main() == 0
    first, server, *runs = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert server["flags"][-2:] == ["--max-model-len", "256"]
    assert any("ready" in line for line in server["log"])
    assert {"gpu", "cpu", "torch"} <= set(first["environment"])
    assert [run["clients"] for run in runs] == [4, 1, 4, 1]
    assert len({run["figures"]["flags"]["--seed"] for run in runs}) == 4, "no run sends prompts of another"
    assert {run["figures"]["tokens"] for run in runs} == {3}
    assert all(set(run["cpu_cores"]) == {"engine", "frontends", "others"} for run in runs)
    said = capsys.readouterr().out
    assert "| toy | 4 | 80 | 2 | 23.00 | 22.00 to 24.00 |" in said
    assert "skipped: toy, 64 clients, shared prefix, run 1" in said

"""The whole command, with client processes, against scripted servers and a real one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.bench import work_list
from penstock.bench.server_metrics import COUNTERS
from penstock.bench.settings import Work
from penstock.cli import run
from tests.penstock.bench.scripted_server import CACHED_TOKENS, ScriptedServer, scripted_server_in_thread
from tests.servers import free_port
from tests.toy_model import make_toy_model

PENSTOCK = (sys.executable, "-m", "penstock")
PATIENCE_S = 60.0
ENCODED = "{}{{{}}}".format(*COUNTERS["prompt_tokens_encoded"])
Bench = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server_in_thread() as running:
        yield running


@pytest.fixture
def bench(server: ScriptedServer, tmp_path: Path, no_process_left: str) -> Bench:
    """Runs the command in this process; returns its exit code and the figures of each load."""

    def run_it(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        path = tmp_path / "figures.json"
        code = run(["bench", "--base-url", server.url, "--json", str(path), "--quiet", *arguments])
        return code, json.loads(path.read_text())["loads"]

    return run_it


def test_several_processes_keep_exactly_the_asked_number_in_flight(bench: Bench, server: ScriptedServer) -> None:
    code, (load,) = bench("--lengths", "9x8", "--num-prompts", "60", "--concurrency", "5", "--workers", "3")
    assert code == 0
    assert (load["requests"], load["ok"], load["errors"], load["wrong_length"]) == (60, 60, 0, 0)
    assert load["client_processes"] == 3
    assert server.most_in_flight == 5
    assert (load["input_tokens"], load["output_tokens"], load["counted_by"]) == (540, 480, "usage")
    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert len(set(prompts)) == 60, "every prompt is sent once"
    assert {len(prompt) for prompt in prompts} == {9}
    assert load["tpot_ms"]["p50"] >= 2.0
    assert 0 < load["client_cpu_share"] < 1


def test_an_open_loop_sends_when_requests_arrive(bench: Bench, server: ScriptedServer) -> None:
    code, (load,) = bench("--lengths", "4x2", "--num-prompts", "40", "--request-rate", "100", "--workers", "2")
    assert (code, load["ok"], load["concurrency"]) == (0, 40, None)
    assert load["seconds"] == pytest.approx(0.4, rel=0.5)
    assert load["late_ms"]["p50"] < 50


def test_an_open_loop_may_have_a_limit(bench: Bench, server: ScriptedServer) -> None:
    code, (load,) = bench("--lengths", "4x20", "--num-prompts", "12", "--request-rate", "inf", "--max-concurrency", "3")
    assert (code, load["ok"], server.most_in_flight) == (0, 12, 3)


def test_a_sweep_has_a_report_and_other_prompts_for_each_load(
    bench: Bench, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    code, loads = bench("--lengths", "4x2", "--num-prompts", "4", "--concurrency", "1,2")
    assert code == 0
    assert [load["concurrency"] for load in loads] == [1, 2]
    assert len({tuple(body["prompt"]) for body in server.bodies}) == 8, "the prefix cache knows none"
    assert "c=2" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("script", ["dies", "500"])
def test_failed_requests_are_counted_and_shown(bench: Bench, script: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, (load,) = bench("--model", script, "--lengths", "4x4", "--num-prompts", "6", "--concurrency", "2")
    assert code == 1
    assert (load["ok"], load["errors"], len(load["first_errors"])) == (0, 6, 5)
    assert "6 requests failed; the first:" in capsys.readouterr().out


def test_conversations_send_the_servers_own_answers_back(bench: Bench, server: ScriptedServer) -> None:
    code, (load,) = bench("--lengths", "agents", "--turns", "3", "--shared-prefix-len", "40", "--concurrency", "2")
    assert code == 0
    assert [turn["requests"] for turn in load["by_turn"]] == [2, 2, 2]
    streamed = [body["messages"] for body in server.bodies if body.get("stream")]
    last = [messages for messages in streamed if len(messages) == 6]
    assert len(last) == 2
    for messages in last:
        assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
        assert messages[2]["content"] == messages[4]["content"] == "ab" * 150
        assert len(messages[0]["content"].split()) == 20, "two tokens a word were found out"
        assert messages[:4] in streamed
    later = [turn["input_tokens_mean"] for turn in load["by_turn"][1:]]
    assert load["prefix_cache_hit_rate_later_turns"] == pytest.approx(2 * CACHED_TOKENS / sum(later))


def test_agents_think_between_turns_and_have_tools_in_their_system_message(bench: Bench, server: ScriptedServer) -> None:
    agents = ["--lengths", "agents", "--turns", "2", "--concurrency", "2"]
    code, (load,) = bench(*agents, "--think-time", "0.3", "--top-k", "3", "--top-p", "0.5")
    assert (code, load["ok"], load["work"]["think_time_s"]) == (0, 4, 0.3)
    streamed = [body for body in server.bodies if body.get("stream")]
    assert all((body["top_k"], body["top_p"]) == (3, 0.5) for body in streamed)
    system = {body["messages"][0]["content"] for body in streamed}
    assert len(system) == 1, "all conversations have the same"
    (text,) = system
    tools = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert tools
    assert all(tool["function"]["parameters"]["type"] == "object" for tool in tools)
    assert 2 * len(text.split()) == pytest.approx(2048, abs=2)
    work = Work(lengths="agents", num_prompts=2, vocab_size=1, think_time_s=0.3)
    pauses_s = [work_list.think_time_s(work, index, 1) for index in range(2)]
    assert 0 < min(pauses_s) < max(pauses_s) < load["seconds"]


def test_a_warm_up_is_not_counted_and_runs_are_repeated_with_other_prompts(
    bench: Bench, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ["--lengths", "8x3", "--num-prompts", "6", "--concurrency", "2"]
    code, (report,) = bench(*load, "--warmup", "4", "--repeat", "3")
    assert (code, report["requests"], report["ok"]) == (0, 18, 18)
    assert len(server.bodies) == 4 + 3 * 6
    assert len({tuple(body["prompt"]) for body in server.bodies}) == len(server.bodies)
    speeds = sorted(run["output_tokens_per_s"] for run in report["runs"])
    assert report["spread"]["output_tokens_per_s"] == dict(zip(("lowest", "median", "highest"), speeds, strict=True))
    assert report["output_tokens_per_s"] == speeds[1]
    said = capsys.readouterr().out
    assert "medians of 3 runs" in said
    assert "output_tokens_per_s" in said


def test_what_the_server_counts_is_read_before_and_after(
    bench: Bench, server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.bench.server_metrics._SETTLING_S", 0.0)
    server.metrics = f"# TYPE x counter\n{ENCODED} 5\n"
    assert bench("--lengths", "4x2", "--num-prompts", "4")[1][0]["prompt_tokens_encoded"] == 0
    assert "prompts tokenized     0 tokens, 0 reused; about 0 were tokenized again" in capsys.readouterr().out


def test_no_server_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--base-url", f"http://127.0.0.1:{free_port()}"]) == 2
    assert re.fullmatch(r"penstock bench: error: http://127\.0\.0\.1:\d+/v1/models: .*\n", capsys.readouterr().err)


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "--base-url", server.url, "--json", str(tmp_path / "none" / "a.json")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert run(["bench", "--base-url", server.url, "--plot", str(tmp_path / "a.pdf")]) == 2
    assert "should end in .png" in capsys.readouterr().err
    assert not server.bodies


def test_a_plot_without_matplotlib_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["bench", "--plot", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err == "penstock bench: error: --plot needs matplotlib: pip install 'penstock[bench]'\n"


@pytest.mark.parametrize("concurrency", ["2", "1,2"])
def test_a_plot_is_a_png(bench: Bench, tmp_path: Path, concurrency: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    assert bench("--lengths", "4x4", "--num-prompts", "8", "--concurrency", concurrency, "--plot", str(path))[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_prints_what_was_measured_so_far(server: ScriptedServer, tmp_path: Path, no_process_left: str) -> None:
    path = tmp_path / "figures.json"
    command = [
        *PENSTOCK,
        "bench",
        "--base-url",
        server.url,
        "--lengths",
        "4x20",
        "--num-prompts",
        "100000",
        "--json",
        str(path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(server.bodies) > 50)
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "interrupted: requests in flight are not in these figures" in said
    assert complaints == ""
    (load,) = json.loads(path.read_text())["loads"]
    assert load["interrupted"]
    assert load["ok"] >= 30
    assert load["errors"] == 0


def test_a_killed_client_process_ends_nothing_but_its_own_requests(
    server: ScriptedServer, tmp_path: Path, no_process_left: str
) -> None:
    command = [*PENSTOCK, "bench", "--base-url", server.url, "--lengths", "4x10", "--num-prompts", "300", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(server.bodies) > 50)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    subprocess.run(["kill", "-KILL", children[0]], check=True)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "a client process ended early: killed by SIGKILL" in said
    assert len(server.bodies) >= 300


@pytest.mark.slow
def test_against_penstock_itself(tmp_path: Path, no_process_left: str) -> None:
    model = make_toy_model(tmp_path / "toy", vocab_size=1024, step_time_s=0.005)
    port = free_port()
    serving = subprocess.Popen([*PENSTOCK, "serve", str(model), "--port", str(port)], stderr=subprocess.DEVNULL)
    common = ["--base-url", f"http://127.0.0.1:{port}", "--quiet", "--workers", "2"]
    try:
        wait_for(
            lambda: run(["bench", *common, "--num-prompts", "1", "--lengths", "4x1", "--vocab-size", "999"]) == 0, every_s=0.5
        )
        path = tmp_path / "figures.json"
        closed = ["--lengths", "50x20", "--num-prompts", "40", "--concurrency", "4", "--vocab-size", "1024"]
        assert run(["bench", *common, *closed, "--json", str(path)]) == 0
        (load,) = json.loads(path.read_text())["loads"]
        assert (load["ok"], load["wrong_length"], load["input_tokens"], load["output_tokens"]) == (40, 0, 2000, 800)
        assert load["tpot_ms"]["p50"] == pytest.approx(5, rel=0.5)
        agents = ["--lengths", "60x30", "--turns", "3", "--shared-prefix-len", "200", "--concurrency", "2"]
        assert run(["bench", *common, *agents, "--json", str(path)]) == 0
        (load,) = json.loads(path.read_text())["loads"]
        assert load["errors"] == 0
        assert load["prefix_cache_hit_rate_later_turns"] > 0.5
    finally:
        serving.terminate()
        serving.wait(PATIENCE_S)


def wait_for(condition: Callable[[], bool], *, every_s: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(every_s)

"""The engine as a process: starts, serves, stops on a signal with exit code 0."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.engine.config import EngineConfig
from penstock.engine.main import run
from penstock.engine.toy_config import ToyConfig, expected_tokens
from penstock.ipc.messages import Hello, Ready
from tests.engine.raw_frontend import RawFrontend
from tests.toy_model import make_toy_model

PROGRAM = """
import sys
from pathlib import Path
from penstock.engine.config import EngineConfig
from penstock.engine.main import run
sys.exit(run(EngineConfig(model=sys.argv[1], socket_dir=Path(sys.argv[2]))))
"""


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def running(model_dir: Path, socket_dir: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", PROGRAM, str(model_dir), str(socket_dir)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def greet(frontend: RawFrontend) -> None:
    frontend.say(Hello(1))
    frontend.hear(Ready, timeout_s=20)
    frontend.greet()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_finishes_what_runs(tmp_path: Path, socket_dir: Path, number: signal.Signals) -> None:
    model_dir = make_toy_model(tmp_path, step_time_s=0.005)
    with running(model_dir, socket_dir) as process, RawFrontend(socket_dir) as frontend:
        greet(frontend)
        frontend.submit(1, [1, 2], 100)
        frontend.wait_until_stat("num_requests_running", 1)
        process.send_signal(number)
        frontend.wait_for(1)
        assert frontend.answers[1].token_ids == expected_tokens([1, 2], 100, ToyConfig.from_dir(model_dir))
        assert process.wait(5) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_an_idle_engine_is_gone_at_once(tmp_path: Path, socket_dir: Path) -> None:
    with running(make_toy_model(tmp_path), socket_dir) as process, RawFrontend(socket_dir) as frontend:
        greet(frontend)
        begin_s = time.monotonic()
        process.terminate()
        assert process.wait(5) == 0
        assert time.monotonic() - begin_s < 2


def test_a_second_signal_ends_it_in_the_middle(tmp_path: Path, socket_dir: Path) -> None:
    model_dir = make_toy_model(tmp_path, step_time_s=0.05)
    with running(model_dir, socket_dir) as process, RawFrontend(socket_dir) as frontend:
        greet(frontend)
        frontend.submit(1, [1, 2], 4000)
        frontend.wait_until_stat("num_requests_running", 1)
        process.terminate()
        time.sleep(0.2)
        assert process.poll() is None
        process.terminate()
        assert process.wait(5) == 1


def test_what_stops_the_start_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_dir = make_toy_model(tmp_path / "model")
    public_dir = tmp_path / "public"
    public_dir.mkdir(mode=0o755)
    for config, words in (
        (EngineConfig(model=str(model_dir)), "--socket-dir"),
        (EngineConfig(model=str(model_dir), socket_dir=public_dir), "mode 0700"),
        (EngineConfig(model=str(model_dir), socket_dir=tmp_path / "missing"), "missing"),
        (EngineConfig(model=str(model_dir), max_model_len=9999, socket_dir=tmp_path), "--max-model-len 9999"),
    ):
        assert run(config) == 2
        told = capsys.readouterr().err
        assert told.startswith("penstock engine: error: ")
        assert words in told
        assert told.count("\n") == 1

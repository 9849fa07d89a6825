"""The commands as people type them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock import __version__
from penstock.cli import run
from penstock.flags import USAGE_ERROR
from penstock.listener import listen
from penstock.readiness import is_ready
from tests.servers import free_port
from tests.toy_model import make_toy_model

PENSTOCK = (sys.executable, "-m", "penstock")
PATIENCE_S = 60.0
Start = Callable[..., "subprocess.Popen[str]"]


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"penstock {__version__}\n"


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("serve", "engine", "frontend", "health", "info", "bench"):
        assert f"\n  {command} " in text
    assert run([]) == USAGE_ERROR


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "there is no command serv, did you mean serve?"),
        (["xyz"], "there is no command xyz (see penstock --help)"),
        (["--model", "X"], "there is no command --model, did you mean penstock serve?"),
    ],
)
def test_an_unknown_command_is_told_from_a_known_one(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == USAGE_ERROR
    assert message in capsys.readouterr().err


def test_a_taken_port_is_said_within_a_second() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        begin_s = time.monotonic()
        ended = subprocess.run(
            [*PENSTOCK, "serve", "--port", str(port)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert time.monotonic() - begin_s < 1 + 1  # a second more for a busy machine
    assert ended.returncode == USAGE_ERROR
    assert ended.stderr == f"penstock: error: port {port} on 127.0.0.1 is taken, choose another with --port\n"


def test_a_model_that_is_none_ends_serve_with_one_line_and_code_2(no_process_left: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*PENSTOCK, "serve", str(tmp_path), "--port", "0"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == USAGE_ERROR
    assert "is not a model directory" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("broken", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_ends_serve_with_one_line_and_code_2(
    no_process_left: str, tmp_path: Path, broken: str
) -> None:
    (make_toy_model(tmp_path) / broken).write_text('{"chat_template": "{% if %}"}')
    ended = subprocess.run(
        [*PENSTOCK, "serve", str(tmp_path), "--port", "0"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == USAGE_ERROR
    assert f"cannot serve the model in {tmp_path}: " in ended.stderr
    assert "is broken: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 1, 2)])
def test_a_server_without_standard_streams_serves(no_process_left: str, tmp_path: Path, closed: tuple[int, ...]) -> None:
    port = free_port()
    command = [*PENSTOCK, "serve", str(make_toy_model(tmp_path)), "--port", str(port)]
    redirections = " ".join(f"{number}>&-" for number in closed)
    with subprocess.Popen(["sh", "-c", f'exec "$@" {redirections}', "sh", *command]) as process:
        try:
            wait_until_ready(process, port)
        finally:
            process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_a_server_whose_log_is_full_serves(no_process_left: str, tmp_path: Path) -> None:
    port = free_port()
    command = [*PENSTOCK, "serve", str(make_toy_model(tmp_path)), "--port", str(port)]
    with Path("/dev/full").open("w") as full, subprocess.Popen(command, stderr=full) as process:
        try:
            wait_until_ready(process, port)
        finally:
            process.terminate()
        assert process.wait(PATIENCE_S) == 0


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not asyncio.run(is_ready(f"http://127.0.0.1:{port}")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_ends_quietly_with_0(number: signal.Signals) -> None:
    program = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'penstock.cli':\n"
        f"            os.kill(os.getpid(), {number:d})\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from penstock.__main__ import main\n"
        "sys.exit(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, timeout=PATIENCE_S, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_a_signal_that_a_module_wraps_in_its_own_error_ends_quietly_too(tmp_path: Path) -> None:
    (tmp_path / "wrapping.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except BaseException as error:\n"
        "    raise RuntimeError('the module cannot be made') from error\n"
    )
    program = (
        "import signal, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from penstock.__main__ import _leave\n"
        "signal.signal(signal.SIGTERM, _leave)\n"
        "import wrapping\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE_S, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


@pytest.fixture
def start(no_process_left: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `penstock ARGUMENTS`, its stderr going to tmp_path/stderr."""
    started: list[subprocess.Popen[str]] = []

    def start_command(*arguments: str) -> subprocess.Popen[str]:
        with (tmp_path / "stderr").open("a") as stderr:
            started.append(subprocess.Popen([*PENSTOCK, *arguments], stderr=stderr, text=True))
        return started[-1]

    yield start_command
    for process in started:
        process.kill()
        process.wait()


def wait_for(path: Path, text: str) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while text not in path.read_text():
        assert time.monotonic() < deadline, f"{text!r} is not in {path.read_text()!r}"
        time.sleep(0.05)
    return path.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_starts_says_how_to_try_it_and_ends_with_0(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    model = make_toy_model(tmp_path / "toy")
    process = start("serve", str(model), "--port", "0", "--frontends", "2", "--served-model-name", "toy", "--api-key", "secret")
    said = wait_for(tmp_path / "stderr", "OpenAI(base_url=")
    url = re.search(r"serving toy at (http://127\.0\.0\.1:\d+)\n", said)
    assert url is not None
    arguments = [path.read_bytes() for pid in children_of(process.pid) for path in [Path(f"/proc/{pid}/cmdline")]]
    assert len(arguments) == 3
    assert not any(b"secret" in line for line in arguments)
    socket_dir = re.search(rb"--socket-dir=([^\0]+)", arguments[0])
    assert socket_dir is not None
    assert Path(os.fsdecode(socket_dir.group(1))).is_dir()
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 0
    assert "secret" not in (tmp_path / "stderr").read_text()
    assert not Path(os.fsdecode(socket_dir.group(1))).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_engine_and_frontend_end_with_0_by_themselves(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    socket_dir = tmp_path / "s"
    model = make_toy_model(tmp_path / "toy")
    processes = [
        start("engine", str(model), "--socket-dir", str(socket_dir)),
        start("frontend", "--socket-dir", str(socket_dir), "--port=0"),
    ]
    wait_for(tmp_path / "stderr", "engine ready")
    assert socket_dir.stat().st_mode & 0o777 == 0o700
    for process in reversed(processes):
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0


def test_a_server_that_is_still_starting_ends_with_0(start: Start, tmp_path: Path) -> None:
    process = start("serve", str(make_toy_model(tmp_path / "toy")), "--port", "0")
    wait_for(tmp_path / "stderr", "penstock: starting")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


def children_of(parent_pid: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if is_child(pid, parent_pid)]


def is_child(pid: int, parent_pid: int) -> bool:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent_pid
    except (FileNotFoundError, ProcessLookupError):
        return False

"""What the frontend's image holds: the locked list and the wheel alone. It must serve, and torch must not be there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.ipc.sockets import make_socket_dir
from tests.servers import free_port
from tests.toy_model import make_toy_model
from tests.wheel import PATIENCE_S, ROOT, build_wheel, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed by the same two commands as in the Dockerfile."""
    directory = tmp_path_factory.mktemp("environment")
    wheel = build_wheel(tmp_path_factory.mktemp("source"))
    run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory)
    install = (sys.executable, "-m", "pip", "--python", directory / "bin" / "python", "install", "--quiet", "--no-compile")
    locked = ROOT / "requirements" / "frontend.txt"
    run(*install, "--require-hashes", "--only-binary", ":all:", "-r", locked, cwd=directory)
    run(*install, "--no-deps", "--no-index", wheel, cwd=directory)
    return directory


@pytest.fixture
def socket_dir() -> Path:
    return make_socket_dir()


@pytest.fixture
def frontend_url(
    environment: Path, socket_dir: Path, tmp_path: Path, no_process_left: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Two frontends out of that environment as compose.yaml starts them, from an empty directory, before there is an engine."""
    monkeypatch.setenv("PENSTOCK_API_KEY", "")
    port = free_port()
    flags = ("--socket-dir", str(socket_dir), "--host", "0.0.0.0", "--port", str(port), "--frontends", "2")
    with (tmp_path / "frontend.log").open("w") as log:
        process = subprocess.Popen([environment / "bin" / "penstock", "frontend", *flags], cwd=tmp_path, stderr=log)
    url = f"http://127.0.0.1:{port}"
    wait_for(url + "/livez", 200)
    yield url
    process.terminate()
    code = process.wait(PATIENCE_S)
    said = (tmp_path / "frontend.log").read_text()
    assert code == 0, said
    assert "no key is asked for" in said


@pytest.fixture
def engine(socket_dir: Path, tmp_path: Path, no_process_left: str) -> Iterator[None]:
    """A toy engine out of the environment of this test, as if in another container."""
    model = make_toy_model(tmp_path / "toy")
    command = [sys.executable, "-P", "-m", "penstock", "engine", str(model), "--socket-dir", str(socket_dir)]
    process = subprocess.Popen([*command, "--served-model-name", "toy"], cwd=tmp_path)
    yield
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


def status_of(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_for(url: str, status: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while status_of(url) != status:
        assert time.monotonic() < deadline, f"{url} answers {status_of(url)}, not {status}"
        time.sleep(0.1)


def test_there_is_no_torch(environment: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'triton', 'numpy') if u.find_spec(n)])"
    assert run(environment / "bin" / "python", "-c", code, cwd=tmp_path) == "[]\n"


def test_the_frontends_are_alive_and_not_ready_without_an_engine(frontend_url: str) -> None:
    assert status_of(frontend_url + "/readyz") == 503


def test_the_frontends_stream_what_an_engine_of_another_environment_says(frontend_url: str, engine: None) -> None:
    for _ in range(20):  # each of the two finds the engine by itself
        wait_for(frontend_url + "/readyz", 200)
    body = {"model": "toy", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 12, "stream": True}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{frontend_url}/v1/chat/completions", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        events = [line.removeprefix(b"data: ").strip() for line in answer if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert len("".join(choice["delta"].get("content") or "" for choice in choices)) == 12
    assert choices[-1]["finish_reason"] == "length"


def test_an_engine_is_healthy_only_while_it_runs(environment: Path, socket_dir: Path, request: pytest.FixtureRequest) -> None:
    def health(timeout_s: float) -> int:
        command = [
            str(environment / "bin" / "penstock"),
            "health",
            "--socket-dir",
            str(socket_dir),
            "--timeout",
            str(timeout_s),
        ]
        return subprocess.run(command, check=False, timeout=PATIENCE_S).returncode

    assert health(0.5) == 1
    request.getfixturevalue("engine")
    assert health(30) == 0

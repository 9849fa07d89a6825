"""The frontend as a process of its own: signals, sockets, exit codes, what it imports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from penstock.frontend.board import make_board
from penstock.ipc.messages import FinishReason, Submit
from tests.frontend.fake_engine import FakeEngine, never_finish
from tests.frontend.harness import REPLY, until
from tests.servers import free_port

PROGRAM = """
import json, sys
from pathlib import Path
from penstock.frontend.config import FrontendConfig
from penstock.frontend.main import run
flags = json.loads(sys.argv[1])
sys.exit(run(FrontendConfig(**{**flags, "socket_dir": Path(flags["socket_dir"])})))
"""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    engine: FakeEngine
    http: httpx2.AsyncClient


def start(flags: dict[str, object], pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(flags)],
        cwd=ROOT,
        pass_fds=pass_fds,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.asynccontextmanager
async def running(model_dir: Path, *, inherit: bool = False, **flags: object) -> AsyncIterator[Running]:
    """A frontend process that is ready, killed at the end should it still run."""
    with tempfile.TemporaryDirectory(prefix="penstock-", dir="/tmp") as directory, contextlib.ExitStack() as stack:
        port, fds = free_port(), ()
        if inherit:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port, fds = listener.getsockname()[1], (listener.fileno(),)  # type: ignore[assignment]
            flags["listen_fd"] = listener.fileno()
        engine = stack.enter_context(FakeEngine(Path(directory), model_dir, list(REPLY)))
        process = start({"socket_dir": directory, "port": port, **flags}, fds)
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                for _ in range(400):
                    with contextlib.suppress(httpx2.TransportError):
                        if (await http.get("/readyz")).status_code == 200:
                            break
                    assert process.poll() is None, process.communicate()[1]
                    await asyncio.sleep(0.05)
                yield Running(process, engine, http)
        finally:
            process.kill()
            process.communicate()


async def exit_code(process: subprocess.Popen[str], timeout_s: float = 10.0) -> int:
    return await asyncio.to_thread(process.wait, timeout_s)


def ask(stream: bool) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hi"}], "stream": stream}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_lets_open_streams_finish_and_exits_with_0(toy_model_dir: Path, number: signal.Signals) -> None:
    def slowly(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [72]))
        asyncio.run(until(lambda: bool(stopping)))
        engine.send(identity, engine.outputs(submit.request_id, 1, [73], FinishReason.LENGTH))

    stopping: list[bool] = []
    async with running(toy_model_dir) as frontend:
        frontend.engine.script = slowly
        async with frontend.http.stream("POST", "/v1/chat/completions", json=ask(True)) as response:
            lines = response.aiter_lines()
            while '"H"' not in await anext(lines):
                pass
            frontend.process.send_signal(number)
            await asyncio.sleep(0.5)
            with pytest.raises(httpx2.TransportError):
                async with httpx2.AsyncClient(base_url=frontend.http.base_url) as other:
                    await other.get("/livez")
            stopping.append(True)
            rest = [line async for line in lines]
        assert any('"I"' in line for line in rest)
        assert "data: [DONE]" in rest
        assert await exit_code(frontend.process) == 0
        await until(lambda: len(frontend.engine.goodbyes) == 1)


@pytest.mark.slow
async def test_what_outlives_the_shutdown_timeout_ends_with_an_error(toy_model_dir: Path) -> None:
    async with running(toy_model_dir, shutdown_timeout_s=0.5) as frontend:
        frontend.engine.script = never_finish
        asking = [asyncio.create_task(frontend.http.post("/v1/chat/completions", json=ask(stream))) for stream in (True, False)]
        await until(lambda: len(frontend.engine.submits) == 2)
        await asyncio.sleep(0.7)
        frontend.process.terminate()
        streamed, whole = await asyncio.gather(*asking)
        assert "shutting down" in streamed.text.splitlines()[-2]
        assert "[DONE]" not in streamed.text
        assert whole.status_code == 503
        assert await exit_code(frontend.process) == 0


@pytest.mark.slow
async def test_an_inherited_socket_is_served(toy_model_dir: Path) -> None:
    async with running(toy_model_dir, inherit=True, name="frontend-3") as frontend:
        response = await frontend.http.post("/v1/chat/completions", json=ask(False))
        assert response.json()["choices"][0]["message"]["content"] == "Hello, world!"
        frontend.process.terminate()
        assert await exit_code(frontend.process) == 0


@pytest.mark.slow
async def test_the_first_of_two_frontends_is_ready_when_the_late_one_is(toy_model_dir: Path) -> None:
    with contextlib.ExitStack() as stack:
        board_fd = make_board(2)
        stack.callback(os.close, board_fd)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-", dir="/tmp")))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(FakeEngine(directory, toy_model_dir, list(REPLY)))
        flags: dict[str, object] = {"socket_dir": str(directory), "listen_fd": listener.fileno(), "board_fd": board_fd}
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def status() -> int:
            async with httpx2.AsyncClient(base_url=url, timeout=20) as http:
                return (await http.get("/readyz")).status_code

        def begin(number: int) -> None:
            process = start({**flags, "number": number}, (listener.fileno(), board_fd))
            stack.callback(process.communicate)
            stack.callback(process.kill)

        begin(0)
        async with httpx2.AsyncClient(base_url=url, timeout=20) as first:
            while (await first.get("/v1/models")).status_code == 503:
                await asyncio.sleep(0.05)
            assert (await first.get("/readyz")).status_code == 503
            begin(1)
            while (await first.get("/readyz")).status_code == 503:
                await asyncio.sleep(0.02)
        assert [await status() for _ in range(8)] == [200] * 8


def test_a_taken_port_is_one_clear_line_and_exit_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start({"socket_dir": str(tmp_path), "port": port})
        error = process.communicate(timeout=10)[1]
    assert process.returncode == 2
    assert error.splitlines() == [f"penstock: address 127.0.0.1:{port} is already in use"]


def test_a_frontend_imports_neither_torch_nor_transformers_nor_numpy() -> None:
    program = "import sys, penstock.frontend.main; print(*sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    imported = {name.partition(".")[0] for name in result.stdout.split()}
    assert not imported & {"torch", "transformers", "numpy", "triton", "safetensors"}
    ours = {name for name in result.stdout.split() if name.startswith("penstock.")}
    assert not [name for name in ours if name.startswith(("penstock.engine", "penstock.kernels"))]

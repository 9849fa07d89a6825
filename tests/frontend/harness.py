"""A frontend for tests: the real application and its real sockets, with a fake engine behind them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai

from penstock.frontend.app import create_app
from penstock.frontend.config import FrontendConfig
from penstock.frontend.service import Service
from tests.frontend.fake_engine import FakeEngine

REPLY = b"Hello, world!"


@dataclass(frozen=True)
class Frontend:
    """A running frontend and the engine behind it."""

    engine: FakeEngine
    service: Service
    http: httpx2.AsyncClient

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        """POSTs JSON, or `content=` as it is."""
        if body is not None:
            options["json"] = body
        else:
            options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        return await self.http.post(path, **options)

    async def chat(self, **fields: Any) -> httpx2.Response:
        """Asks for a chat completion."""
        return await self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], **fields})

    async def complete(self, **fields: Any) -> httpx2.Response:
        """Asks for a completion."""
        return await self.post("/v1/completions", {"prompt": "hi", **fields})

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        """The official client, talking to this frontend."""
        return openai.AsyncOpenAI(
            base_url="http://frontend/v1", api_key="none", max_retries=0, http_client=self.http, **options
        )


@contextlib.asynccontextmanager
async def running_frontend(
    model_dir: Path, *, facts: dict[str, Any] | None = None, ready_timeout_s: float = 10.0, **flags: Any
) -> AsyncIterator[Frontend]:
    """A frontend that is ready, with `facts` for the engine's Ready and `flags` of FrontendConfig."""
    with tempfile.TemporaryDirectory(prefix="penstock-", dir="/tmp") as directory:
        socket_dir = Path(directory)
        service = Service(FrontendConfig(socket_dir=socket_dir, **flags))
        app = create_app(service.config, service)
        with FakeEngine(socket_dir, model_dir, list(REPLY), **(facts or {})) as engine:
            async with app.router.lifespan_context(app):
                transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
                async with httpx2.AsyncClient(transport=transport, base_url="http://frontend", timeout=30) as http:
                    await until(lambda: service.is_ready, ready_timeout_s)
                    yield Frontend(engine, service, http)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for something that happens elsewhere."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def events(response: httpx2.Response) -> list[Any]:
    """The data of a stream's events, JSON decoded; "[DONE]" stays a string."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error of a refused request, after checking that it has OpenAI's shape and nothing else."""
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return error

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.frontend.app import create_app
from penstock.frontend.auth import OPEN_PATHS
from penstock.frontend.config import FrontendConfig
from tests.frontend.harness import Frontend, error_of, running_frontend


@pytest.fixture
async def guarded(toy_model_dir: Path) -> AsyncIterator[Frontend]:
    async with running_frontend(toy_model_dir, api_keys=("first-key", "second-key")) as frontend:
        yield frontend


def all_routes() -> Iterator[tuple[str, str]]:
    """(method, path) of everything the application answers."""
    schema = create_app(FrontendConfig(socket_dir=Path("/nowhere"))).openapi()
    for path, methods in schema["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("{model_id}", "toy")
    yield from (("GET", path) for path in ("/docs", "/openapi.json", "/docs/oauth2-redirect", "/unknown", "//v1/models"))


@pytest.mark.parametrize(("method", "path"), list(all_routes()))
async def test_every_route_but_the_probes_asks_for_the_key(guarded: Frontend, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        response = await guarded.http.request(method, path, headers=headers)
        if path in OPEN_PATHS:
            assert response.status_code == 200
            assert response.content == b""
        else:
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"


def test_the_walk_over_the_routes_sees_them() -> None:
    paths = {path for _, path in all_routes()}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/toy", "/tokenize", "/metrics"} <= paths
    assert paths >= OPEN_PATHS


@pytest.mark.parametrize("value", ["Bearer first-key", "bearer second-key", "BEARER  first-key"])
async def test_each_key_opens(guarded: Frontend, value: str) -> None:
    response = await guarded.http.get("/v1/models", headers={"Authorization": value})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "first-key", "Basic first-key", "Bearer first-ke", "Bearer first-key second-key"]
)
async def test_nothing_else_opens(guarded: Frontend, value: str) -> None:
    headers: Any = {"Authorization": value}
    assert (await guarded.http.get("/v1/models", headers=headers)).status_code == 401


async def test_two_authorization_headers_do_not_open(guarded: Frontend) -> None:
    headers = [("Authorization", "Bearer first-key"), ("Authorization", "Bearer x")]
    assert (await guarded.http.get("/v1/models", headers=headers)).status_code == 401


async def test_a_wrong_key_is_refused_before_the_body_is_looked_at(guarded: Frontend) -> None:
    assert (await guarded.post("/v1/completions", content=b"{")).status_code == 401

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.cores import Division
from penstock.engine.config import EngineConfig
from penstock.frontend.config import FrontendConfig
from penstock.listener import listen
from penstock.serve import ServeConfig, plan_server, serve

SOCKET_DIR = Path("/run/penstock")
BOARD_FD = 77


def test_the_plan_has_an_engine_and_frontends_on_one_socket() -> None:
    config = ServeConfig(
        engine=EngineConfig(model="X", socket_dir=SOCKET_DIR),
        frontend=FrontendConfig(socket_dir=SOCKET_DIR, port=0),
        num_frontends=3,
    )
    with listen("127.0.0.1", 0) as listener:
        plan = plan_server(config, listener, BOARD_FD, {"HOME": "/home"})
        fd = listener.fileno()
    assert plan.engine is not None
    assert {"engine", "--model=X", f"--socket-dir={SOCKET_DIR}"} <= set(plan.engine.arguments)
    assert plan.engine.inherited_fds == ()
    assert [frontend.name for frontend in plan.frontends] == ["frontend-0", "frontend-1", "frontend-2"]
    for frontend in plan.frontends:
        assert {"frontend", f"--listen-fd={fd}", f"--board-fd={BOARD_FD}", f"--name={frontend.name}"} <= set(frontend.arguments)
        assert frontend.inherited_fds == (fd, BOARD_FD)
        assert frontend.environment == {"HOME": "/home"}


def test_keys_are_in_the_environment_of_the_frontends_and_nowhere_else() -> None:
    config = ServeConfig(
        engine=EngineConfig(socket_dir=SOCKET_DIR),
        frontend=FrontendConfig(socket_dir=SOCKET_DIR, api_keys=("secret-1", "secret-2")),
        num_frontends=1,
    )
    with listen("127.0.0.1", 0) as listener:
        plan = plan_server(config, listener, BOARD_FD, {"PENSTOCK_API_KEY": "secret-2"})
    assert plan.frontends[0].environment == {"PENSTOCK_API_KEY": "secret-1,secret-2"}
    assert plan.engine is not None
    assert plan.engine.environment == {}
    assert not any("secret" in argument for child in (plan.engine, *plan.frontends) for argument in child.arguments)
    assert plan.api_key == "secret-1"


def test_a_division_of_the_cores_is_kept_to() -> None:
    config = ServeConfig(
        engine=EngineConfig(socket_dir=SOCKET_DIR), frontend=FrontendConfig(socket_dir=SOCKET_DIR), num_frontends=2
    )
    with listen("127.0.0.1", 0) as listener:
        pinned = plan_server(config, listener, BOARD_FD, {}, Division(engine=(0, 1), frontends=((2,), (3,))))
        free = plan_server(config, listener, BOARD_FD, {})
    assert pinned.engine is not None
    assert pinned.engine.cores == (0, 1)
    assert [frontend.cores for frontend in pinned.frontends] == [(2,), (3,)]
    assert [frontend.cores for frontend in free.frontends] == [(), ()]


def test_too_few_cores_to_divide_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    config = ServeConfig(engine=None, frontend=FrontendConfig(socket_dir=SOCKET_DIR), num_frontends=200, pins_cores=True)
    monkeypatch.setattr("penstock.serve.Supervisor.run", lambda self: asyncio.sleep(0, 0))
    with listen("127.0.0.1", 0) as listener:
        assert serve(config, listener, {}, said.append) == 0
    assert "--pin-cores has no effect" in said[0]

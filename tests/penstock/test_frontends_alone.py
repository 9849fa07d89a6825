"""`penstock frontend` in one or several processes, under another supervisor than the engine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock import cli
from penstock.frontend.config import FrontendConfig
from penstock.listener import listen
from penstock.serve import ServeConfig, plan_server

BOARD_FD = 77


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FrontendConfig]:
    """What was asked to run, in place of running it."""
    configs: list[FrontendConfig] = []

    def run(config: FrontendConfig) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr("penstock.frontend.main.run", run)
    return configs


@pytest.mark.parametrize(
    ("host", "key", "warns"), [("0.0.0.0", "", True), ("0.0.0.0", "secret", False), ("127.0.0.1", "", False)]
)
def test_a_frontend_for_everybody_without_a_key_says_so(
    host: str,
    key: str,
    warns: bool,
    started: list[FrontendConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", key)
    assert cli.run(["frontend", "--socket-dir", str(tmp_path), "--host", host]) == 0
    assert started[0].api_keys == ((key,) if key else ())
    assert ("no key is asked for" in capsys.readouterr().err) == warns


def test_several_frontends_are_planned_without_an_engine(tmp_path: Path) -> None:
    config = ServeConfig(engine=None, frontend=FrontendConfig(socket_dir=tmp_path, name="web"), num_frontends=2)
    with listen("127.0.0.1", 0) as listener:
        plan = plan_server(config, listener, BOARD_FD, {})
    assert plan.engine is None
    assert [frontend.name for frontend in plan.frontends] == ["web-0", "web-1"]


def test_several_frontends_do_not_take_an_inherited_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.run(["frontend", "--socket-dir", str(tmp_path), "--frontends", "2", "--listen-fd", "3"])
    assert "--listen-fd is for one frontend" in capsys.readouterr().err

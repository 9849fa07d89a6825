"""The compose files, the Dockerfile and the locked lists, read and not run: promises that an edit could break unseen."""

from __future__ import annotations

import importlib
import re
import tomllib
from typing import Any

import pytest

from penstock import cli
from tests.wheel import ROOT

COMPOSE = (ROOT / "compose.yaml").read_text()
COMPOSE_CPU = (ROOT / "compose.cpu.yaml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES = ("engine", "frontend")


def services(text: str) -> dict[str, Any]:
    yaml: Any = importlib.import_module("yaml")  # has no types

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Knows compose's !reset."""

    Loader.add_constructor("!reset", lambda loader, node: "reset")
    found: dict[str, Any] = yaml.load(text, Loader)["services"]
    return found


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened_watched_and_restarted(name: str) -> None:
    service = services(COMPOSE)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert service["pids_limit"] > 0
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert "privileged" not in service
    assert "user" not in service, "the image says so, for whoever starts it otherwise too"


def test_the_images_run_as_a_user_without_rights() -> None:
    for target in SERVICES:
        stage = DOCKERFILE.partition(f"AS {target}\n")[2].partition("\nFROM ")[0]
        assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["penstock"], target


def test_a_service_has_longer_to_stop_than_its_requests_to_finish() -> None:
    from penstock.engine.server import DRAIN_TIMEOUT_S

    engine, frontend = (services(COMPOSE)[name] for name in SERVICES)
    shutdown_timeout_s = re.search(r"--shutdown-timeout (\d+)", frontend["command"])
    assert shutdown_timeout_s is not None
    assert seconds(frontend["stop_grace_period"]) >= int(shutdown_timeout_s[1]) + 10
    assert seconds(engine["stop_grace_period"]) >= DRAIN_TIMEOUT_S + 10


def test_both_services_see_the_same_places_and_the_frontend_cannot_change_the_models() -> None:
    engine, frontend = (services(COMPOSE)[name]["volumes"] for name in SERVICES)
    assert engine == ["${MODELS:-models}:/models", "sockets:/run/penstock"]
    assert frontend == ["${MODELS:-models}:/models:ro", "sockets:/run/penstock"]


def test_the_frontend_waits_for_a_healthy_engine_and_is_published_on_this_machine_only() -> None:
    frontend = services(COMPOSE)["frontend"]
    assert frontend["depends_on"] == {"engine": {"condition": "service_healthy"}}
    assert frontend["ports"] == ["${ADDRESS:-127.0.0.1}:${PORT:-8000}:8000"]
    assert "ports" not in services(COMPOSE)["engine"]


def test_only_the_file_for_a_gpu_asks_for_one() -> None:
    (device,) = services(COMPOSE)["engine"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert services(COMPOSE_CPU)["engine"]["deploy"] == "reset"


def test_every_variable_has_a_default_and_is_documented() -> None:
    documented = (ROOT / "docs" / "deploy.md").read_text()
    for name, operator in re.findall(r"\$\{(\w+)([^}]?[^}]?)", COMPOSE + COMPOSE_CPU):
        assert operator in (":-", ":+") or operator.startswith("-"), f"{name} has no default"
        assert f"`{name}`" in documented, f"{name} is not in docs/deploy.md"
    for name in services(COMPOSE)["engine"]["environment"]:
        assert f"`{name}`" in documented, f"{name} is not in docs/deploy.md"


@pytest.mark.parametrize("name", SERVICES)
def test_the_commands_use_flags_that_there_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run([name, "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    used = set(re.findall(r"--[a-z][a-z-]*", services(COMPOSE)[name]["command"]))
    assert used <= known
    assert "--socket-dir" in used


@pytest.mark.parametrize("word", ["start_interval", "nofile", "gpus:", "# syntax="])
def test_nothing_is_used_that_older_engines_refuse(word: str) -> None:
    assert word not in COMPOSE + COMPOSE_CPU + DOCKERFILE


def test_the_locked_lists_hold_what_the_package_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {normal(re.split(r"[<>=; ]", line)[0]) for line in project["dependencies"]}
    assert listed("engine.in") == required - {"torch", "triton"}
    assert listed("frontend.in") < listed("engine.in")
    for name in SERVICES:
        locked = locked_versions(f"{name}.txt")
        assert listed(f"{name}.in") <= set(locked)
        assert not {"torch", "triton"} & set(locked)
    assert locked_versions("frontend.txt").items() <= locked_versions("engine.txt").items()
    assert not {"numpy", "transformers"} & set(locked_versions("frontend.txt"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(name: str) -> set[str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    included = {one for line in lines if line.startswith("-r ") for one in listed(line.removeprefix("-r "))}
    return included | {normal(line) for line in lines if line and line[0] not in "#-"}


def locked_versions(name: str) -> dict[str, str]:
    """Project -> version; each must come with hashes."""
    text = (ROOT / "requirements" / name).read_text()
    found = {}
    for line in re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)):
        match = re.match(r"([a-z0-9-]+)==([^ ]+)", line)
        assert match is not None, line
        assert "--hash=sha256:" in line, line
        found[match[1]] = match[2]
    return found

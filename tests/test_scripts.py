"""scripts/serve and scripts/test in a small repository with a stand-in for Python, pip and the programs they install."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("sh", "dirname", "cat", "cksum", "rm", "mkdir", "cp", "chmod")
PYTHON = """#!/bin/sh
# A Python that can do what the scripts ask for, and notes what it installs and runs.
log=LOG
case "$*" in
    *version_info*) exit ${IS_TOO_OLD:-0} ;;
    *"import ensurepip"*) exit ${LACKS_VENV:-0} ;;
    "-m venv --clear "*)
        mkdir -p "$4/bin"
        for name in python penstock ruff mypy; do cp "$0" "$4/bin/$name"; done ;;
    "-m pip --version") ;;
    "-m pip install "*) echo "$*" >>"$log"; exit ${PIP_FAILS:-0} ;;
    --version) echo "Python 3.9.2" ;;
    -VV) echo "Python 3.12.0 (stand-in)" ;;
    *) echo "${0##*/} $*" >>"$log" ;;
esac
"""


class Checkout:
    """A repository of just the scripts and what decides about the installation."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "check out"
        self.log = directory / "log"
        self.log.touch()
        self.path = directory / "bin"
        self.path.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.path / tool).symlink_to(found)
        python = self.path / "python3"
        python.write_text(PYTHON.replace("LOG", str(self.log)))
        python.chmod(0o755)
        (self.directory / "scripts").mkdir(parents=True)
        for name in ("_environment", "serve", "test"):
            shutil.copy(ROOT / "scripts" / name, self.directory / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.directory)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.directory / "scripts" / script, *arguments],
            env={"PATH": str(self.path), **environment},
            cwd=self.log.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def logged(self) -> list[str]:
        """What was installed and run since the last call."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


INSTALL = "-m pip install -c constraints.txt -e ."
INSTALL_FOR_TESTS = "-m pip install -c constraints.txt -e .[test]"


def test_the_first_start_installs_and_the_second_does_not(checkout: Checkout) -> None:
    assert checkout.run("serve", "my model", "--port", "1").returncode == 0
    assert checkout.logged() == [INSTALL, "penstock serve my model --port 1"]
    assert checkout.run("serve").returncode == 0
    assert checkout.logged() == ["penstock serve"]


def test_what_tests_need_is_enough_for_serving(checkout: Checkout) -> None:
    checkout.run("test")
    assert checkout.logged() == [
        INSTALL_FOR_TESTS,
        "ruff check .",
        "ruff format --check .",
        "mypy ",
        "python -m pytest --durations=15",
    ]
    checkout.run("serve")
    assert checkout.logged() == ["penstock serve"]


def test_tests_install_their_extra_after_serving(checkout: Checkout) -> None:
    checkout.run("serve")
    checkout.run("test", "tests/ipc", "-k", "x y")
    assert checkout.logged()[2:] == [INSTALL_FOR_TESTS, "python -m pytest tests/ipc -k x y"]


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(checkout: Checkout, file: str) -> None:
    checkout.run("serve")
    with (checkout.directory / file).open("a") as requirements:
        requirements.write("# changed\n")
    checkout.logged()
    checkout.run("serve")
    assert checkout.logged() == [INSTALL, "penstock serve"]


def test_a_broken_installation_is_said_and_repeated(checkout: Checkout) -> None:
    failed = checkout.run("serve", PIP_FAILS="1")
    assert failed.returncode == 1
    assert "pip could not install the dependencies" in failed.stderr
    assert checkout.logged() == [INSTALL]
    assert checkout.run("serve").returncode == 0
    assert checkout.logged() == [INSTALL, "penstock serve"]


def test_an_environment_without_its_python_is_made_anew(checkout: Checkout) -> None:
    checkout.run("serve")
    (checkout.directory / ".venv" / "bin" / "python").unlink()
    checkout.logged()
    assert checkout.run("serve").returncode == 0
    assert checkout.logged() == [INSTALL, "penstock serve"]


def test_a_python_that_is_too_old_is_said(checkout: Checkout) -> None:
    refused = checkout.run("serve", IS_TOO_OLD="1")
    assert refused.returncode == 1
    assert "Python 3.11 or newer is needed, and there is Python 3.9.2 on the PATH" in refused.stderr
    assert checkout.logged() == []


def test_no_python_at_all_is_said(checkout: Checkout) -> None:
    (checkout.path / "python3").unlink()
    refused = checkout.run("test")
    assert refused.returncode == 1
    assert "there is no Python 3 on the PATH" in refused.stderr


def test_another_python_can_be_named(checkout: Checkout) -> None:
    (checkout.path / "python3").rename(checkout.path / "my-python")
    assert checkout.run("serve", PYTHON=str(checkout.path / "my-python")).returncode == 0


def test_another_python_that_is_none_is_said(checkout: Checkout) -> None:
    assert "PYTHON=my-python is no Python 3.11 or newer" in checkout.run("serve", PYTHON="my-python").stderr


def test_a_missing_venv_module_is_said_with_the_package_to_install(checkout: Checkout) -> None:
    refused = checkout.run("serve", LACKS_VENV="1")
    assert refused.returncode == 1
    assert "apt install python3-venv" in refused.stderr


@pytest.mark.parametrize("failing", ["ruff", "mypy", "python"])
def test_a_failing_check_fails_the_tests(checkout: Checkout, failing: str) -> None:
    checkout.run("test")
    program = checkout.directory / ".venv" / "bin" / failing
    program.write_text(program.read_text().replace('*) echo "${0##*/}', '*) exit 3; echo "${0##*/}'))
    assert checkout.run("test").returncode == 3


@pytest.mark.parametrize("script", [ROOT / "scripts" / "serve", ROOT / "scripts" / "test", ROOT / ".ci" / "run"])
def test_the_scripts_can_be_executed(script: Path) -> None:
    assert os.access(script, os.X_OK)

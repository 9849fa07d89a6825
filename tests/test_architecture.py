"""Who may import whom, and what nobody may do: docs/architecture.md, checked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.source_rules import imported_modules, violations

ROOT = Path(__file__).parent.parent
FOLDERS = ("engine", "frontend", "ipc", "kernels")
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
ALLOWED = {
    "ipc": {"zmq", "msgpack"},
    "kernels": {"torch", "triton"},
    "engine": {"zmq", "torch", "numpy", "safetensors", "huggingface_hub", "tqdm", "transformers"},
    "frontend": {
        "anyio",
        "fastapi",
        "httptools",
        "jinja2",
        "prometheus_client",
        "pydantic",
        "sse_starlette",
        "starlette",
        "tokenizers",
        "uvicorn",
        "uvloop",
        "zmq",
    },
}
"""Third parties a folder may import."""
LAZY = {"transformers", "huggingface_hub", "matplotlib"}
"""Imported inside functions only: they are slow and most starts do without them."""


def sources(folder: str) -> Iterator[tuple[str, str]]:
    """Path and text of the Python files under a folder of the repository, links not followed."""
    for path in sorted((ROOT / folder).rglob("*")):
        if not path.is_file() or any(part.is_symlink() for part in path.parents):
            continue
        if path.suffix == ".py" or (not path.suffix and path.read_bytes()[:64].splitlines()[:1] == [b"#!/usr/bin/env python3"]):
            yield str(path.relative_to(ROOT)), path.read_text()


def third_parties(text: str, *, at_import_time: bool = False) -> set[str]:
    top = {name.partition(".")[0] for name in imported_modules(text, at_import_time=at_import_time)}
    return top - sys.stdlib_module_names - {"penstock"}


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT_IMPORTS, "--no-cache"], cwd=directory, capture_output=True, text=True, timeout=60, check=False)


def copy_of_the_house(directory: Path) -> Path:
    for folder in (*FOLDERS, "penstock"):
        shutil.copytree(
            ROOT / folder,
            directory / folder,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "demo_model"),
        )
    shutil.copy(ROOT / "pyproject.toml", directory)
    return directory


def test_the_import_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("ipc/codec.py", "import torch", "penstock.ipc.codec -> torch"),
        ("kernels/__init__.py", "from penstock.engine import plan", "penstock.kernels -> penstock.engine.plan"),
        ("engine/plan.py", "import torch", "penstock.engine.plan -> torch"),
        ("engine/config.py", "from ..frontend import config", "penstock.engine.config -> penstock.frontend.config"),
        ("engine/config.py", "import fastapi", "penstock.engine.config -> fastapi"),
        ("frontend/config.py", "def f():\n    import transformers", "penstock.frontend.config -> transformers"),
        ("frontend/config.py", "from ..kernels import ops", "penstock.frontend.config -> penstock.kernels.ops"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    house = copy_of_the_house(tmp_path)
    with (house / file).open("a") as text:
        text.write(f"\n{line}\n")
    result = lint_imports(house)
    assert result.returncode == 1
    assert complaint in result.stdout


def test_nobody_below_imports_the_face() -> None:
    face = {f"penstock.{path.stem}" for path in (ROOT / "penstock").glob("*.py")} - {"penstock.__init__"}
    for folder in FOLDERS:
        for path, text in sources(folder):
            assert not any(f"from ..{name.removeprefix('penstock.')} import" in text for name in face), path
            assert not {name for name in imported_modules(text) if name.partition(".")[0] == "penstock"}, (
                f"{path} imports absolutely"
            )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_the_third_parties_it_may(folder: str) -> None:
    for path, text in sources(folder):
        assert third_parties(text) <= ALLOWED[folder], path


@pytest.mark.parametrize("folder", [*FOLDERS, "penstock"])
def test_slow_packages_are_imported_only_where_they_are_used(folder: str) -> None:
    for path, text in sources(folder):
        assert not third_parties(text, at_import_time=True) & LAZY, path


def test_whatever_the_product_imports_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["bench"]]
    names = {re.split(r"[<>=~!; \[]", line, maxsplit=1)[0].lower().replace("_", "-") for line in requirements}
    distributions = packages_distributions()
    for folder in (*FOLDERS, "penstock"):
        for path, text in sources(folder):
            for module in third_parties(text):
                owners = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
                assert owners & names, f"{path} imports {module}, which pyproject.toml does not require"


@pytest.mark.parametrize("folder", [*FOLDERS, "penstock", "scripts"])
def test_nothing_is_pickled_or_run_from_text(folder: str) -> None:
    found = {path: wrong for path, text in sources(folder) if (wrong := violations(text))}
    assert not found


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import pickle as harmless",
        "from pickle import loads",
        "import os, marshal",
        "def f():\n    import dill",
        "from multiprocessing import Process",
        "import torch.multiprocessing as mp",
        "from torch import multiprocessing",
        "import torch\ntorch.load('x')",
        "import torch as t\nweights = t.load",
        "from torch import load",
        "import shelve",
        "eval('1')",
        "run = exec",
        "import builtins\nbuiltins.eval('1')",
        "import zmq\nzmq.Socket.recv_pyobj",
        "from concurrent.futures import ProcessPoolExecutor",
        "__import__('pickle')",
        "import importlib\nimportlib.import_module('pickle')",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "import engine",
        "from kernels.ops import rms_norm",
        "import ipc.messages",
        "from frontend import app",
    ],
)
def test_a_planted_violation_is_caught(planted: str) -> None:
    assert violations(planted)


@pytest.mark.parametrize(
    "innocent",
    [
        "model.eval()",
        "self.exec = 1",
        "import json\njson.load(f)",
        "from safetensors.torch import load_file",
        "from .engine import config",
        "from ..ipc.messages import Submit",
        "from penstock.kernels import ops",
        "import numpy\nnumpy.load('x', allow_pickle=False)",
        "text = 'import pickle; eval(1)'",
        "import torch\nmodel.load(torch.empty(1))",
    ],
)
def test_what_only_looks_alike_is_left_alone(innocent: str) -> None:
    assert violations(innocent) == []


@pytest.mark.parametrize("module", ["penstock", "penstock.cli", "penstock.frontend.main", "penstock.ipc.sockets"])
def test_what_starts_often_imports_neither_torch_nor_transformers(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'numpy', 'triton'}} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout.strip()
        == "[]"
    )

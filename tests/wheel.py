"""Penstock's wheel, built for tests that install it elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("engine", "frontend", "ipc", "kernels")
PATIENCE_S = 100.0


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; fails the test where it fails."""
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def build_wheel(directory: Path) -> Path:
    """Built in `directory` from a copy, so that nothing left in the repository's build folder gets into it."""
    for folder in (*FOLDERS, "penstock", "tests"):
        shutil.copytree(ROOT / folder, directory / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, directory)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory / "dist", cwd=directory)
    (built,) = (directory / "dist").glob("penstock-*.whl")
    return built

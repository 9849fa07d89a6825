"""The wheel: what is in it, and that it serves the demo model from an environment and a directory of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wheel import FOLDERS, PATIENCE_S, ROOT, build_wheel, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second virtual environment with the wheel in it; the heavy packages are read from the first one's folder."""
    directory = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory)
    python = directory / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory).strip())
    (site / "heavy-packages.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=directory)
    return directory


def test_the_wheel_has_every_module_and_the_demo_model_and_nothing_else(wheel: Path) -> None:
    expected = {f"penstock/{file.relative_to(ROOT)}" for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    expected |= {f"penstock/{file.name}" for file in (ROOT / "penstock").glob("*.py")}
    expected |= {f"penstock/bench/{file.name}" for file in (ROOT / "penstock" / "bench").glob("*.py")}
    expected |= {f"penstock/demo_model/{file.name}" for file in (ROOT / "penstock" / "demo_model").iterdir()}
    expected |= {"penstock/py.typed", "penstock/kernels/product_choices.json", "penstock/engine/product_times/nvidia_h200.json"}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        others = {Path(name).name for name in archive.namelist() if ".dist-info/" in name}
    assert names == expected
    assert {"LICENSE", "METADATA", "entry_points.txt"} <= others


def test_the_wheel_is_what_the_second_environment_imports(environment: Path, tmp_path: Path) -> None:
    code = "import penstock, penstock.engine.config as config; print(penstock.__file__, config.__file__, penstock.__version__)"
    package, module, version = run(environment / "bin" / "python", "-c", code, cwd=tmp_path).split()
    assert package.startswith(str(environment))
    assert module.startswith(str(environment))
    assert run(environment / "bin" / "penstock", "--version", cwd=tmp_path) == f"penstock {version}\n"


@pytest.fixture
def demo_server(environment: Path, tmp_path: Path, no_process_left: str) -> Iterator[str]:
    """The URL of `penstock serve` with nothing but the wheel, from an empty directory."""
    log = tmp_path / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen([environment / "bin" / "penstock", "serve", "--port", "0"], cwd=tmp_path, stderr=stderr)
    deadline = time.monotonic() + PATIENCE_S
    while (serving := re.search(r"serving penstock-demo at (\S+)\n", log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    yield serving.group(1)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.skipif(not (ROOT / "penstock/demo_model/config.json").exists(), reason="the demo model is not there yet")
def test_the_wheel_serves_the_demo_model(demo_server: str) -> None:
    body = {"model": "penstock-demo", "messages": [{"role": "user", "content": "What is 12 + 30?"}], "temperature": 0}
    request = urllib.request.Request(
        f"{demo_server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        text = json.load(answer)["choices"][0]["message"]["content"]
    assert "42" in text


@pytest.mark.parametrize("directory", [ROOT, ROOT / "tests"], ids=["from the root", "from elsewhere"])
def test_transformers_still_imports(directory: Path) -> None:
    """It looks for a package called `kernels`, and the repository has a folder of that name."""
    code = "import transformers; from transformers import AutoTokenizer, LlamaForCausalLM; print(transformers.__version__)"
    assert run(sys.executable, "-c", code, cwd=directory)

"""README's Python examples do what they say, run as they are printed, with the demo model."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.servers import ROOT, running_server

pytestmark = pytest.mark.slow
PORT_IN_README = "http://127.0.0.1:8000"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def output_of(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_openai_client_gets_an_answer() -> None:
    [code] = [code for code in examples() if "import OpenAI" in code]
    assert PORT_IN_README in code
    with running_server() as server:
        assert "42" in output_of(code.replace(PORT_IN_README, server.url))


def test_the_model_answers_without_a_server() -> None:
    [code] = [code for code in examples() if "import LLM" in code]
    assert "Wednesday" in output_of(code)

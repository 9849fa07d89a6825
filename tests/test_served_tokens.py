"""A served checkpoint says the tokens of the engine in this process: from one frontend or three, streamed or complete."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import make_checkpoint
from tests.engine.generating import Generated, assert_same_tokens, engine_for, generate
from tests.servers import Server, running_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NUM_OUTPUT_TOKENS = 32


def served_token_ids(server: Server, prompt: list[int], *, stream: bool) -> list[int]:
    """The greedy tokens of one completion over HTTP."""
    body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": NUM_OUTPUT_TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True, "stream": stream}
    asked = urllib.request.Request(
        server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as response:
        text = response.read().decode()
    if not stream:
        chunks = [json.loads(text)]
    else:
        *events, done = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        assert done == "[DONE]"
        chunks = [json.loads(event) for event in events]
    return [token_id for chunk in chunks for choice in chunk["choices"] for token_id in choice["token_ids"]]


@pytest.mark.parametrize("num_frontends", ["1", "3"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_served_tokens_are_those_of_the_engine_alone(name: str, num_frontends: str, tmp_path: Path) -> None:
    model_dir = make_checkpoint(name, tmp_path)
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 300, size).tolist() for size in (1, 3, 16, 17, 31, 48, 70)]
    expected = generate(engine_for(model_dir), prompts, max_tokens=NUM_OUTPUT_TOKENS, logprobs=5)
    flags = ("--served-model-name", "tiny", "--frontends", num_frontends, "--kv-cache-memory-bytes", "4MiB")
    with running_server(str(model_dir), *flags) as server, ThreadPoolExecutor(8) as pool:
        for stream in (False, True):
            asked = [pool.submit(served_token_ids, server, prompt, stream=stream) for prompt in prompts]
            for answer, reference in zip(asked, expected, strict=True):
                assert_same_tokens(Generated(token_ids=answer.result()), reference)

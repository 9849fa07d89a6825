"""Models from a hub: fetched, resumed, refused, found in the cache; against a stand-in on localhost."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.engine import hub
from penstock.engine.errors import EngineStartError
from tests.engine.test_model_config import BASE
from tests.stand_in_hub import Repo, SeenRequest, StandInHub

NAME = "someone/tiny-llama"
MIB = 1 << 20
WEIGHTS = random.Random(0).randbytes(24 * MIB)
"""More than two of huggingface_hub's chunks of 10 MiB, so that a break in the second leaves something to go on from."""
PROGRAM = """
import sys
from penstock.engine.config import EngineConfig
from penstock.engine.errors import EngineStartError
from penstock.engine.model_files import resolve_model
try:
    files = resolve_model(EngineConfig(model=sys.argv[1], revision=sys.argv[2] or None, load_format=sys.argv[3]))
    print(files.model_dir)
except EngineStartError as error:
    print("refused:", error)
"""


def files() -> dict[str, bytes]:
    return {
        "config.json": json.dumps(BASE).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b"{ }",
        "model.safetensors": WEIGHTS,
        "consolidated.safetensors": b"the same again",
        "pytorch_model.bin": b"the same again, pickled",
        "original/params.json": b"{}",
        "README.md": b"# Tiny",
    }


@pytest.fixture
def stand_in() -> Iterator[StandInHub]:
    with StandInHub({NAME: Repo(files())}) as running:
        yield running


@dataclass
class Client:
    """Resolves a model in a fresh process with an empty cache of its own."""

    endpoint: str
    home: Path

    def resolve(self, name: str = NAME, *, revision: str = "", load_format: str = "auto", **env: str) -> str:
        """The model's directory, or "refused: ..."."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
        settings = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-c", PROGRAM, name, revision, load_format]
        result = subprocess.run(
            command, env={**kept, **settings, **env}, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture
def client(stand_in: StandInHub, tmp_path: Path) -> Client:
    return Client(stand_in.url, tmp_path / "home")


def names_of(directory: str) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def test_only_what_is_needed_is_fetched_and_only_once(stand_in: StandInHub, client: Client) -> None:
    model_dir = client.resolve()
    wanted = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert names_of(model_dir) == wanted
    assert (Path(model_dir) / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(request.path for request in stand_in.downloads) == wanted
    assert client.resolve() == model_dir
    assert len(stand_in.downloads) == len(wanted)


def test_dummy_weights_need_no_weights(stand_in: StandInHub, client: Client) -> None:
    assert names_of(client.resolve(load_format="dummy")) == ["config.json", "generation_config.json", "tokenizer.json"]


def test_a_broken_download_goes_on_where_it_stopped(stand_in: StandInHub, client: Client) -> None:
    stand_in.repos[NAME].cuts["model.safetensors"] = [15 * MIB]
    model_dir = client.resolve()
    assert (Path(model_dir) / "model.safetensors").read_bytes() == WEIGHTS
    requests = [request for request in stand_in.downloads if request.path == "model.safetensors"]
    assert requests == [
        SeenRequest("model.safetensors", None),
        SeenRequest("model.safetensors", f"bytes={10 * MIB}-"),
    ]


def test_a_failed_download_goes_on_with_the_missing_files_at_the_next_start(stand_in: StandInHub, client: Client) -> None:
    stand_in.repos[NAME].failing.add("model.safetensors")
    message = client.resolve()
    assert message.startswith(f"refused: downloading {NAME} from {stand_in.url} failed (HfHubHTTPError: ")
    assert message.endswith("start again to go on with the files that are missing")
    stand_in.repos[NAME].failing.clear()
    stand_in.downloads.clear()
    assert "model.safetensors" in names_of(client.resolve())
    assert [request.path for request in stand_in.downloads] == ["model.safetensors"]


def test_an_architecture_we_do_not_know_is_refused_before_its_weights_are_fetched(stand_in: StandInHub, client: Client) -> None:
    stand_in.repos[NAME].files["config.json"] = json.dumps({**BASE, "architectures": ["GPT2LMHeadModel"]}).encode()
    assert "unknown architecture GPT2LMHeadModel" in client.resolve()
    assert "model.safetensors" not in [request.path for request in stand_in.downloads]


def test_a_gated_model_says_where_to_ask_and_which_variable_to_set(stand_in: StandInHub, client: Client) -> None:
    stand_in.repos[NAME].required_token = "hf_good"
    for env in ({}, {"HF_TOKEN": "hf_bad"}):
        assert client.resolve(**env) == (
            f"refused: {NAME} is gated: accept its licence at {stand_in.url}/{NAME}, "
            "then set HF_TOKEN to a token of that account"
        )
    assert "model.safetensors" in names_of(client.resolve(HF_TOKEN="hf_good"))


def test_an_unknown_id_is_said(stand_in: StandInHub, client: Client) -> None:
    message = client.resolve("someone/no-such-model")
    assert message.startswith(
        f"refused: there is no model someone/no-such-model at {stand_in.url}, nor a directory of that name"
    )
    assert "HF_TOKEN" in message


def test_an_unknown_revision_is_said(stand_in: StandInHub, client: Client) -> None:
    assert client.resolve(revision="v9").startswith(f"refused: {NAME} has no revision 'v9': see the branches, tags and commits")


def test_offline_a_cached_model_is_used_without_a_request_and_another_is_refused(stand_in: StandInHub, client: Client) -> None:
    refusal = f"refused: {NAME} is not (completely) in the local cache, and HF_HUB_OFFLINE forbids downloading it"
    assert client.resolve(HF_HUB_OFFLINE="1") == refusal
    assert client.resolve(load_format="dummy")
    stand_in.downloads.clear()
    assert names_of(client.resolve(load_format="dummy", HF_HUB_OFFLINE="1"))
    assert client.resolve(HF_HUB_OFFLINE="1") == refusal
    assert stand_in.downloads == []


def test_without_a_network_a_cached_model_is_used_and_another_is_refused(stand_in: StandInHub, client: Client) -> None:
    nowhere = "http://127.0.0.1:9"
    message = client.resolve(HF_ENDPOINT=nowhere)
    assert message.startswith(f"refused: {nowhere} cannot be reached and {NAME} is not (completely) in the local cache: ")
    model_dir = client.resolve()
    assert client.resolve(HF_ENDPOINT=nowhere) == model_dir


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fill_the_disk(*args: object, **kwargs: object) -> str:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("data processing error") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fill_the_disk)
    with pytest.raises(EngineStartError, match=r"the disk is full while downloading a/b: make room, or .* --download-dir"):
        hub.download("a/b", revision=None, cache_dir=None, weights=False)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "a/b_c.d-e"])
def test_what_can_be_a_hub_id(name: str) -> None:
    assert hub.is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["", "/models/x", "./x", "a/b/c", "a b", "a/", "../x", "a/..", "a--b", "ä/b", "a/b\n", "x" * 200]
)
def test_what_cannot_be_a_hub_id(name: str) -> None:
    assert not hub.is_hub_id(name)

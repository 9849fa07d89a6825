"""Which directories a model name leads to, and what is made where files are missing."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from penstock.engine.config import EngineConfig
from penstock.engine.errors import EngineStartError
from penstock.engine.model_files import DEMO_MODEL_DIR, ModelFiles, resolve_model
from tests.checkpoints import CHAT_TEMPLATE, write_tokenizer
from tests.engine.test_model_config import write as write_config

TEXT = "Hello, wörld!\n  12 + 30 = 42 <|im_end|>"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A local model without weights (nothing here reads them)."""
    path = tmp_path / "model"
    path.mkdir()
    write_config(path, generation={"temperature": 0.5})
    write_tokenizer(path)
    return path


def slow_tokenizer(path: Path) -> Tokenizer:
    """Replaces tokenizer.json by the vocab.json and merges.txt it was made from; returns what it was."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    model = json.loads((path / "tokenizer.json").read_text())["model"]
    (path / "tokenizer.json").unlink()
    (path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {"2": {"content": "<|im_end|>", "special": True}},
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def resolve(tmp_path: Path, model: Path | str | None, **settings: str) -> ModelFiles:
    name = None if model is None else str(model)
    return resolve_model(EngineConfig(model=name, download_dir=tmp_path / "downloads", **settings))  # type: ignore[arg-type]


def test_a_complete_directory_is_used_as_it_is(model_dir: Path, tmp_path: Path) -> None:
    assert resolve(tmp_path, model_dir) == ModelFiles(model_dir, model_dir, (str(model_dir),))
    assert not (tmp_path / "downloads").exists()


def test_a_relative_path_becomes_absolute_and_the_served_name_stays_as_given(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_dir.parent)
    files = resolve(tmp_path, "model")
    assert files.model_dir == model_dir
    assert files.served_model_names == ("model",)


@pytest.mark.parametrize("name", [None, "penstock-demo"])
def test_without_a_model_it_is_the_bundled_one(name: str | None, tmp_path: Path) -> None:
    assert resolve(tmp_path, name) == ModelFiles(DEMO_MODEL_DIR, DEMO_MODEL_DIR, ("penstock-demo",))


def test_served_names_can_be_given(model_dir: Path, tmp_path: Path) -> None:
    config = EngineConfig(model=str(model_dir), served_model_names=("a", "b"))
    assert resolve_model(config).served_model_names == ("a", "b")


def test_an_older_tokenizer_is_converted_once_and_outside_the_model(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = slow_tokenizer(model_dir)
    before = sorted(path.name for path in model_dir.iterdir())
    model_dir.chmod(stat.S_IRUSR | stat.S_IXUSR)
    files = resolve(tmp_path, model_dir)
    model_dir.chmod(stat.S_IRWXU)
    assert sorted(path.name for path in model_dir.iterdir()) == before
    assert files.model_dir == model_dir
    assert files.tokenizer_dir.is_relative_to(tmp_path / "downloads")
    converted = Tokenizer.from_file(str(files.tokenizer_dir / "tokenizer.json"))
    assert converted.encode(TEXT).ids == expected.encode(TEXT).ids
    assert json.loads((files.tokenizer_dir / "generation_config.json").read_text()) == {"temperature": 0.5}
    templates = [path.read_text() for path in files.tokenizer_dir.glob("chat_template.jinja")]
    templates.append(json.loads((files.tokenizer_dir / "tokenizer_config.json").read_text()).get("chat_template"))
    assert CHAT_TEMPLATE in templates

    monkeypatch.setattr("transformers.AutoTokenizer", None)
    assert resolve(tmp_path, model_dir) == files


def test_a_changed_tokenizer_is_converted_again(model_dir: Path, tmp_path: Path) -> None:
    slow_tokenizer(model_dir)
    first = resolve(tmp_path, model_dir).tokenizer_dir
    (model_dir / "merges.txt").write_text("#version: 0.2\n")
    second = resolve(tmp_path, model_dir).tokenizer_dir
    assert first != second
    merges = json.loads((second / "tokenizer.json").read_text())["model"]["merges"]
    assert merges == []


def test_code_that_comes_with_a_tokenizer_is_never_run(model_dir: Path, tmp_path: Path) -> None:
    slow_tokenizer(model_dir)
    proof = tmp_path / "it ran"
    (model_dir / "tokenization_evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass EvilTokenizer: pass\n")
    settings = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]}}
    (model_dir / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(EngineStartError, match=r"cannot convert the tokenizer in"):
        resolve(tmp_path, model_dir)
    assert not proof.exists()


def test_another_tokenizer_is_put_together_with_the_models_own_files(model_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    (other / "generation_config.json").write_text('{"temperature": 9.0}')
    (model_dir / "tokenizer.json").unlink()
    files = resolve(tmp_path, model_dir, tokenizer=str(other))
    assert files.model_dir == model_dir
    assert (files.tokenizer_dir / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert json.loads((files.tokenizer_dir / "generation_config.json").read_text()) == {"temperature": 0.5}
    assert (files.tokenizer_dir / "config.json").is_file()


def test_a_model_without_any_tokenizer_is_refused(model_dir: Path, tmp_path: Path) -> None:
    (model_dir / "tokenizer.json").unlink()
    with pytest.raises(EngineStartError, match=r"has no tokenizer.json; name another tokenizer with --tokenizer"):
        resolve(tmp_path, model_dir)


def test_a_cache_that_cannot_be_written_is_said(model_dir: Path, tmp_path: Path) -> None:
    slow_tokenizer(model_dir)
    (tmp_path / "downloads").write_text("a file where the directory should be")
    with pytest.raises(EngineStartError, match=r"cannot write the tokenizer to .*; set --download-dir"):
        resolve(tmp_path, model_dir)


@pytest.mark.parametrize(
    ("file_name", "message"),
    [
        ("notes.txt", "is not a model directory: it has no config.json"),
        ("model.Q4_K_M.gguf", "it has GGUF files and no config.json; Penstock reads the Hugging Face format"),
        ("params.json", "it has params.json, the authors' own format"),
    ],
)
def test_a_directory_that_is_no_model_says_what_is_missing(file_name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / file_name).write_text("")
    with pytest.raises(EngineStartError, match=message):
        resolve(tmp_path, tmp_path / "x")


def test_a_file_is_no_model(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"config.json is a file; give the model's directory"):
        resolve(tmp_path, model_dir / "config.json")


@pytest.mark.parametrize("name", ["/no/such/dir", "./no/such/dir", "~nobody-of-that-name/x", "no such model", "a/b/c", ""])
def test_what_is_neither_a_directory_nor_an_id_is_refused_without_a_download(name: str, tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"is neither a directory nor a Hugging Face id"):
        resolve(tmp_path, name)

"""Where a model's files are: the bundled demo model, a directory, or the hub (fetched when it is not there yet)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from . import hub
from .config import EngineConfig
from .errors import EngineStartError
from .model_config import ModelConfig
from .tokenizer_files import prepare_tokenizer

DEMO_MODEL_NAME = "penstock-demo"
DEMO_MODEL_DIR = Path(__file__).parent.parent / "demo_model"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Everything of a model on this machine's disk."""

    model_dir: Path
    """config.json, weights."""
    tokenizer_dir: Path
    """tokenizer.json and its companions, config.json, and generation_config.json where the model has one."""
    served_model_names: tuple[str, ...]


def resolve_model(config: EngineConfig) -> ModelFiles:
    """Finds, fetches and converts what the engine and its frontends will read; raises EngineStartError.

    Of a model on the hub the small files come first, so that one we cannot run is refused before its weights are fetched.
    """
    model_dir = _resolve_dir(config)
    tokenizer_source_dir = model_dir
    if config.tokenizer is not None:
        tokenizer_source_dir = _existing_dir(config.tokenizer) or _fetch(config, config.tokenizer, weights=False)
    tokenizer_dir = prepare_tokenizer(tokenizer_source_dir, model_dir, cache_dir(config))
    names = config.served_model_names or (config.model or DEMO_MODEL_NAME,)
    return ModelFiles(model_dir, tokenizer_dir, names)


def _resolve_dir(config: EngineConfig) -> Path:
    if config.model is None or config.model == DEMO_MODEL_NAME:
        return DEMO_MODEL_DIR
    model_dir = _existing_dir(config.model)
    if model_dir is None:
        model_dir = _fetch(config, config.model, weights=False)
        ModelConfig.from_dir(model_dir)
        if config.load_format != "dummy":
            model_dir = _fetch(config, config.model, weights=True)
    if not (model_dir / "config.json").is_file():
        raise EngineStartError(f"{model_dir} is not a model directory: {_missing(model_dir)}")
    return model_dir


def _missing(model_dir: Path) -> str:
    if any(model_dir.glob("*.gguf")):
        return "it has GGUF files and no config.json; Penstock reads the Hugging Face format (config.json, *.safetensors)"
    if (model_dir / "params.json").is_file():
        return "it has params.json, the authors' own format; use the model in Hugging Face format (config.json, *.safetensors)"
    return "it has no config.json"


def _existing_dir(name: str) -> Path | None:
    """The directory `name` if there is one; None for what can only be a hub id. Raises EngineStartError for neither."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111  Path.expanduser raises for an unknown user
    if name and path.is_dir():
        return path.resolve()
    if path.is_file():
        raise EngineStartError(f"{name} is a file; give the model's directory (config.json, *.safetensors, tokenizer.json)")
    if not hub.is_hub_id(name):
        raise EngineStartError(f"{name!r} is neither a directory nor a Hugging Face id")
    return None


def _fetch(config: EngineConfig, repo_id: str, *, weights: bool) -> Path:
    revision = config.revision if repo_id == config.model else None
    return hub.download(repo_id, revision=revision, cache_dir=config.download_dir, weights=weights)


def cache_dir(config: EngineConfig) -> Path:
    """Where files that are made on this machine are kept."""
    if config.download_dir is not None:
        return config.download_dir / "penstock"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"

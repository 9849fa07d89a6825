"""A directory with the tokenizer files that frontends read; a tokenizer without tokenizer.json is converted once.

Model directories are never written to: what is made is kept in a cache, under a name that changes with its sources.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from .errors import EngineStartError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_MODEL_FILES = ("config.json", "generation_config.json")
_CONVERTIBLE_PATTERNS = ("*.model", "*.tiktoken", "vocab.json", "merges.txt", "vocab.txt")


def prepare_tokenizer(source_dir: Path, model_dir: Path, cache_dir: Path) -> Path:
    """A directory that holds tokenizer.json and its companions from `source_dir`, and the model's config.json and
    generation_config.json: `model_dir` itself where it has them all, otherwise one below `cache_dir`.

    Raises EngineStartError where there is no tokenizer or it cannot be converted.
    """
    has_fast_tokenizer = (source_dir / "tokenizer.json").is_file()
    if has_fast_tokenizer and source_dir == model_dir:
        return model_dir
    convertible = [path for pattern in _CONVERTIBLE_PATTERNS for path in source_dir.glob(pattern)]
    if not has_fast_tokenizer and not convertible:
        raise EngineStartError(f"{source_dir} has no tokenizer.json; name another tokenizer with --tokenizer")
    sources = _present(source_dir, _TOKENIZER_FILES) + _present(model_dir, _MODEL_FILES)
    target = cache_dir / "tokenizers" / _fingerprint([*sources, *convertible])
    if (target / "tokenizer.json").is_file():
        return target
    try:
        _assemble(target, source_dir, sources, converts=not has_fast_tokenizer)
    except OSError as error:
        raise EngineStartError(
            f"cannot write the tokenizer to {target}: {error.strerror or error}; set --download-dir"
        ) from error
    return target


def _present(directory: Path, names: Iterable[str]) -> list[Path]:
    return [directory / name for name in names if (directory / name).is_file()]


def _fingerprint(files: Iterable[Path]) -> str:
    digest = blake2b(digest_size=16)
    for path in files:
        status = path.stat()
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _assemble(target: Path, source_dir: Path, sources: list[Path], *, converts: bool) -> None:
    """Fills a temporary directory and moves it to `target` in one step, so that nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        work_dir = Path(temporary) / "tokenizer"
        work_dir.mkdir()
        for path in sources:
            shutil.copyfile(path, work_dir / path.name)
        if converts:
            _convert(source_dir, work_dir)
        try:
            work_dir.rename(target)
        except OSError:
            if not (target / "tokenizer.json").is_file():  # unless another process was faster
                raise


def _convert(source_dir: Path, target_dir: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json for a tokenizer in an older format, by transformers, without its code."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source_dir, trust_remote_code=False, local_files_only=True)
        tokenizer.save_pretrained(target_dir)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineStartError(f"cannot convert the tokenizer in {source_dir}: {reason}") from error
    if not (target_dir / "tokenizer.json").is_file():
        raise EngineStartError(f"cannot convert the tokenizer in {source_dir}: {type(tokenizer).__name__} has no fast form")

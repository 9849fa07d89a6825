"""Models from the Hugging Face hub: fetched into a cache, resumed where a connection broke, with errors that say what to do.

huggingface_hub reads HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT by itself; it is imported on first use.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import EngineStartError

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_CONFIG_PATTERNS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
_WEIGHT_PATTERNS = ("*.safetensors",)
_IGNORED_PATTERNS = ("*/*", "consolidated*")
"""Subfolders hold other formats of the same model, consolidated* files the same weights under other names."""


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a hub id: "name" or "owner/name"."""
    return _ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def download(repo_id: str, *, revision: str | None, cache_dir: Path | None, weights: bool) -> Path:
    """The directory with a snapshot of the model: its JSON and tokenizer files, and with `weights` its safetensors too.

    Complete files are kept from one try to the next; a file whose connection breaks is resumed where it stopped. Shows
    progress on a terminal. Raises EngineStartError.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if weights:
        print(f"Fetching {repo_id} from {constants.ENDPOINT}", file=sys.stderr, flush=True)
    try:
        snapshot = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=[*_CONFIG_PATTERNS, *(_WEIGHT_PATTERNS if weights else ())],
            ignore_patterns=list(_IGNORED_PATTERNS),
        )
    except Exception as error:
        raise EngineStartError(_explain(error, repo_id, revision, constants.ENDPOINT)) from error
    return Path(snapshot)


def _explain(error: Exception, repo_id: str, revision: str | None, endpoint: str) -> str:
    """One line for a person: what went wrong and what to do."""
    from huggingface_hub import errors

    page = f"{endpoint}/{repo_id}"
    chain = list(_causes(error))
    if any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in chain):
        return f"the disk is full while downloading {repo_id}: make room, or choose another place with --download-dir"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: accept its licence at {page}, then set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no model {repo_id} at {endpoint}, nor a directory of that name; if it is private, set HF_TOKEN ({page})"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}: see the branches, tags and commits at {page}/commits"
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in chain):
        return f"{repo_id} is not (completely) in the local cache, and HF_HUB_OFFLINE forbids downloading it"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{endpoint} cannot be reached and {repo_id} is not (completely) in the local cache: {_brief(chain[-1])}"
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is neither a directory nor a Hugging Face id"
    return (
        f"downloading {repo_id} from {endpoint} failed ({_brief(error)}); start again to go on with the files that are missing"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

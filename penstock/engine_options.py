"""The keywords of `LLM(...)`, vLLM's names, read into an EngineConfig."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

from .engine.config import EngineConfig
from .flags import DTYPES, did_you_mean
from .frontend.seeds import SEED_LIMIT
from .vllm_flags import REFUSED, REFUSED_SWITCHES, WITHOUT_EFFECT, WITHOUT_EFFECT_WITH_VALUE

_DEFAULTS = EngineConfig()


class EngineOptions(TypedDict, total=False):
    """What `LLM` takes beside the model; EngineConfig says what each means. A missing one has EngineConfig's default."""

    tokenizer: str | None
    revision: str | None
    download_dir: str | PathLike[str] | None
    device: str
    dtype: Any
    """Also a torch.dtype."""
    load_format: str
    max_model_len: int | None
    block_size: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    enable_prefix_caching: bool
    enforce_eager: bool
    async_scheduling: bool
    deterministic: bool
    seed: int
    tensor_parallel_size: int
    """1."""
    quantization: str | None
    """None."""


_CHOICES: dict[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "load_format": ("auto", "safetensors", "dummy"),
}
_COUNTS = frozenset({"block_size", "max_num_seqs", "max_num_batched_tokens"})
_OPTIONAL_COUNTS = frozenset({"max_model_len", "kv_cache_memory_bytes", "num_gpu_blocks_override"})
_FLAGS = frozenset({"enable_prefix_caching", "enforce_eager", "async_scheduling", "deterministic"})
_TEXTS = frozenset({"tokenizer", "revision"})


def engine_config(model: str | None, options: Mapping[str, Any]) -> EngineConfig:
    """Raises TypeError for an unknown keyword and ValueError for a value that is refused; both name the keyword."""
    ours: dict[str, Any] = {}
    for name, value in options.items():
        if hasattr(_DEFAULTS, name) and name in EngineOptions.__annotations__:
            ours[name] = _read(name, value)
        else:
            _check_foreign(name, value)
    return EngineConfig(model=None if model is None else str(model), **ours)


def _read(name: str, value: Any) -> Any:
    if name == "dtype":
        text = str(value).removeprefix("torch.")
        value = DTYPES.get(text, text)
    if name == "download_dir":
        return None if value is None else Path(value)
    takes = _fault(name, value)
    if takes is not None:
        raise ValueError(f"{name} must be {takes}, got {value!r}")
    return value


def _fault(name: str, value: Any) -> str | None:
    """What the keyword takes, if it does not take this value."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if name in _CHOICES:
        return None if value in _CHOICES[name] else f"one of {', '.join(_CHOICES[name])}"
    if name in _COUNTS:
        return None if is_int and value > 0 else "a whole number of at least 1"
    if name in _OPTIONAL_COUNTS:
        return None if value is None or (is_int and value > 0) else "None or a whole number of at least 1"
    if name in _FLAGS:
        return None if isinstance(value, bool) else "True or False"
    if name in _TEXTS:
        return None if value is None or isinstance(value, str) else "None or a text"
    if name == "seed":
        return None if is_int and 0 <= value < SEED_LIMIT else "a whole number from 0 to 2**63 - 1"
    return None if isinstance(value, (int, float)) and 0 < value <= 1 else "above 0 and at most 1"


def _check_foreign(name: str, value: Any) -> None:
    """A keyword of vLLM: accepted with a warning if it has no effect here; if it is not built, only with a harmless value."""
    flag = f"--{name.replace('_', '-')}"
    if name == "enable_chunked_prefill":
        if not value:
            _warn(name, "long prompts are always taken in chunks")
        return
    without_effect = {**WITHOUT_EFFECT, **WITHOUT_EFFECT_WITH_VALUE}
    for flags, why in without_effect.items():
        if flag in flags:
            if value:
                _warn(name, why)
            return
    for flags, why in REFUSED_SWITCHES.items():
        if flag in flags:
            _refuse_unless(not value, name, value, why)
            return
    for flags, (why, harmless) in REFUSED.items():
        if flag in flags:
            _refuse_unless(value is None or str(value).lower() in harmless, name, value, why)
            return
    raise TypeError(
        f"LLM() got an unexpected keyword argument {name!r}{did_you_mean(name, list(EngineOptions.__annotations__))}"
    )


def _refuse_unless(is_harmless: bool, name: str, value: Any, why: str) -> None:
    if not is_harmless:
        raise ValueError(f"{name}={value!r}: {why}")


def _warn(name: str, why: str) -> None:
    warnings.warn(f"{name} has no effect: {why}", stacklevel=5)  # the line with LLM(...)

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.engine.config import EngineConfig
from penstock.engine_options import EngineOptions, engine_config


def test_without_options_the_configuration_is_the_default() -> None:
    assert engine_config(None, {}) == EngineConfig()


def test_every_option_reaches_the_configuration() -> None:
    options: EngineOptions = {
        "tokenizer": "t",
        "revision": "main",
        "download_dir": "d",
        "device": "cpu",
        "dtype": "bfloat16",
        "load_format": "dummy",
        "max_model_len": 100,
        "block_size": 8,
        "gpu_memory_utilization": 0.5,
        "kv_cache_memory_bytes": 1000,
        "num_gpu_blocks_override": 10,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 99,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "async_scheduling": False,
        "deterministic": True,
        "seed": 7,
    }
    expected: dict[str, Any] = {**options, "download_dir": Path("d")}
    assert engine_config("m", options) == EngineConfig(model="m", **expected)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("half", "float16"), ("float", "float32"), (torch.bfloat16, "bfloat16"), (torch.float16, "float16"), ("auto", "auto")],
)
def test_dtypes_have_several_names(dtype: Any, name: str) -> None:
    assert engine_config("m", {"dtype": dtype}).dtype == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "int8"),
        ("device", "tpu"),
        ("load_format", "pt"),
        ("max_model_len", 0),
        ("max_model_len", "8k"),
        ("max_num_seqs", None),
        ("block_size", -1),
        ("max_num_batched_tokens", True),
        ("gpu_memory_utilization", 1.1),
        ("gpu_memory_utilization", 0),
        ("enforce_eager", 1),
        ("seed", -1),
        ("tokenizer", 7),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        engine_config("m", {name: value})


def test_an_unknown_keyword_is_a_type_error_with_a_guess() -> None:
    with pytest.raises(TypeError, match=r"'max_model_length', did you mean max_model_len\?"):
        engine_config("m", {"max_model_length": 7})
    with pytest.raises(TypeError, match="'socket_dir'"):
        engine_config("m", {"socket_dir": "x"})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("tensor_parallel_size", 2, "one GPU only"),
        ("pipeline_parallel_size", 2, "one GPU only"),
        ("quantization", "awq", "quantized checkpoints"),
        ("kv_cache_dtype", "fp8", "KV cache"),
        ("enable_lora", True, "LoRA"),
        ("speculative_config", {"model": "x"}, "speculative decoding"),
    ],
)
def test_what_is_not_built_is_refused_with_the_reason(name: str, value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{reason}"):
        engine_config("m", {name: value})


def test_values_that_ask_for_nothing_are_accepted() -> None:
    harmless = {
        "tensor_parallel_size": 1,
        "quantization": None,
        "enable_lora": False,
        "kv_cache_dtype": "auto",
        "trust_remote_code": False,
        "enable_chunked_prefill": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine_config("m", harmless) == EngineConfig(model="m")


@pytest.mark.parametrize(("name", "value"), [("trust_remote_code", True), ("swap_space", 4), ("enable_chunked_prefill", False)])
def test_what_has_no_effect_is_accepted_with_a_warning(name: str, value: Any) -> None:
    with pytest.warns(UserWarning, match=f"{name} has no effect"):
        assert engine_config("m", {name: value}) == EngineConfig(model="m")

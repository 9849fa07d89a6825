"""What we read out of config.json and generation_config.json, and what we say when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.errors import EngineStartError
from penstock.engine.model_config import KVGroup, ModelConfig
from penstock.engine.rope_config import DefaultRope, DynamicRope, LinearRope, Llama3Rope, YarnRope

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
REMOVED = object()


def write(path: Path, generation: dict[str, Any] | None = None, **changes: Any) -> Path:
    config = {name: value for name, value in {**BASE, **changes}.items() if value is not REMOVED}
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def read(path: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    return ModelConfig.from_dir(write(path, generation, **changes))


def test_sizes_are_read_and_absent_fields_get_transformers_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, num_key_value_heads=REMOVED)
    assert (config.vocab_size, config.hidden_size, config.num_layers, config.intermediate_size) == (1000, 64, 4, 128)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 8, 8)
    assert (config.rms_norm_eps, config.tie_word_embeddings, config.dtype) == (1e-5, False, "float32")
    assert config.rope == DefaultRope(10_000.0)
    assert config.layer_windows == (None,) * 4
    assert config.kv_groups == (KVGroup(None, (0, 1, 2, 3)),)


def test_older_and_newer_style_say_the_same(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    older = read(tmp_path, rope_theta=5e5, rope_scaling={"type": "llama3", **scaling}, torch_dtype="bfloat16")
    newer = read(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling}, dtype="bfloat16")
    assert older == newer
    assert older.rope == Llama3Rope(5e5, 8.0, 1.0, 4.0, 512)
    assert older.dtype == "bfloat16"


def test_every_architecture_has_its_own_biases_and_norms(tmp_path: Path) -> None:
    def flags(architecture: str, **changes: Any) -> tuple[bool, bool, bool, bool]:
        config = read(tmp_path, architectures=[architecture], **changes)
        return config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm

    biased = {"attention_bias": True, "mlp_bias": True}
    assert flags("LlamaForCausalLM") == (False, False, False, False)
    assert flags("LlamaForCausalLM", **biased) == (True, True, True, False)
    assert flags("MistralForCausalLM", **biased) == (False, False, False, False)
    assert flags("Qwen2ForCausalLM") == (True, False, False, False)
    assert flags("Qwen3ForCausalLM") == (False, False, False, True)
    assert flags("Qwen3ForCausalLM", **biased) == (True, True, False, True)


def test_qwen3_heads_have_128_dimensions_unless_said_otherwise(tmp_path: Path) -> None:
    assert read(tmp_path, architectures=["Qwen3ForCausalLM"]).head_dim == 128
    assert read(tmp_path, architectures=["Qwen3ForCausalLM"], head_dim=32).head_dim == 32


@pytest.mark.parametrize(
    ("architecture", "changes", "windows"),
    [
        ("LlamaForCausalLM", {"sliding_window": 9}, (None, None, None, None)),
        ("MistralForCausalLM", {"sliding_window": 9}, (9, 9, 9, 9)),
        ("MistralForCausalLM", {"sliding_window": None}, (None, None, None, None)),
        ("MistralForCausalLM", {}, (4096,) * 4),
        ("Qwen2ForCausalLM", {"sliding_window": 9, "max_window_layers": 2}, (None, None, None, None)),
        ("Qwen2ForCausalLM", {"sliding_window": 9, "max_window_layers": 2, "use_sliding_window": True}, (None, None, 9, 9)),
        ("Qwen2ForCausalLM", {"sliding_window": None, "max_window_layers": 0, "use_sliding_window": True}, (None,) * 4),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            },
            (9, None, None, 9),
        ),
    ],
)
def test_sliding_windows_by_layer(
    architecture: str, changes: dict[str, Any], windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    assert read(tmp_path, architectures=[architecture], **changes).layer_windows == windows


def test_layers_of_one_window_form_a_group(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        architectures=["Qwen2ForCausalLM"],
        use_sliding_window=True,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )
    assert config.kv_groups == (KVGroup(9, (0, 2)), KVGroup(None, (1, 3)))


def test_rope_kinds_and_the_context_they_allow(tmp_path: Path) -> None:
    def rope(**fields: Any) -> ModelConfig:
        return read(tmp_path, rope_parameters={"rope_theta": 1e4, **fields})

    linear, dynamic = rope(rope_type="linear", factor=4), rope(rope_type="dynamic", factor=2.0)
    assert linear.rope == LinearRope(1e4, 4.0)
    assert dynamic.rope == DynamicRope(1e4, 2.0, 2048)
    assert (linear.default_max_model_len, linear.largest_max_model_len) == (2048, 8192)
    assert (dynamic.default_max_model_len, dynamic.largest_max_model_len) == (2048, 4096)
    yarn = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=2048)
    assert isinstance(yarn.rope, YarnRope)
    assert yarn.rope.attention_factor == pytest.approx(1.1386294)
    assert (yarn.rope.beta_fast, yarn.rope.beta_slow, yarn.rope.truncate) == (32.0, 1.0, True)
    assert (yarn.default_max_model_len, yarn.largest_max_model_len) == (8192, 8192)


def test_a_null_rope_scaling_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, rope_theta=3e4, rope_scaling=None).rope == DefaultRope(3e4)


@pytest.mark.parametrize(
    ("generation", "in_config", "expected"),
    [
        (None, 7, (7,)),
        ({"eos_token_id": 8}, 7, (8,)),
        ({"eos_token_id": [8, 9, 8]}, 7, (8, 9)),
        ({"eos_token_id": None}, [7, 6], (7, 6)),
        ({}, None, ()),
    ],
)
def test_end_of_sequence_ids(
    generation: dict[str, Any] | None, in_config: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    assert read(tmp_path, generation, eos_token_id=in_config).eos_token_ids == expected


def test_generation_defaults(tmp_path: Path) -> None:
    generation = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05, "max_length": 20}
    expected = {"temperature": 0.6, "top_p": 0.95, "top_k": 20.0, "min_p": 0.1, "repetition_penalty": 1.05}
    assert read(tmp_path, {**generation, "do_sample": True}).generation_defaults == expected
    assert read(tmp_path, {**generation, "do_sample": False}).generation_defaults == {"temperature": 0.0}
    assert read(tmp_path, {"temperature": None}).generation_defaults == {}


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        EngineStartError,
        match=r"GPT2LMHeadModel; Penstock knows LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    ):
        read(tmp_path, architectures=["GPT2LMHeadModel"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": REMOVED}, "config.json: vocab_size is missing"),
        ({"vocab_size": "1000"}, "config.json: vocab_size must be an integer, not a string"),
        ({"hidden_size": True}, "hidden_size must be an integer, not a boolean"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, not 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 10000, not 1000000000"),
        ({"vocab_size": 10**30}, "vocab_size must be at most 2147483647, not 1000"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads \(3\) must divide num_attention_heads \(8\)"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps must be a number, not a string"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is out of range: nan"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is out of range: 1000"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, not an integer"),
        ({"torch_dtype": "int8"}, "dtype 'int8' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"architectures": REMOVED}, "architectures is missing; known architectures: LlamaForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
        ({"eos_token_id": 1000}, "eos_token_id 1000 is not below vocab_size"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id must be a token id or a list of token ids"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized checkpoints are not supported"),
        ({"rope_scaling": 4}, "rope_scaling must be an object, not an integer"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling: rope_type 'longrope' is not supported; supported are default"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": {"type": "yarn", "factor": -1.0}}, "rope_scaling: factor is out of range: -1.0"),
        ({"rope_scaling": {"type": "linear", "factor": 1e308}}, "rope_scaling: factor is out of range"),
        ({"rope_scaling": {"type": "yarn", "factor": 8.0, "rope_theta": 1.0}}, "rope_theta must be above 1 for yarn"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": -4.8089834696298785}},
            "mscale_all_dim is out of range",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim must be at least 4 for a dynamic rope"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor other than 1"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": ["full_attention"]},
            "layer_types has 1 entries for 4 layers",
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": ["linear_attention"] * 4},
            "layer_types has an unknown entry 'linear_attention'",
        ),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=message):
        read(tmp_path, **changes)


def test_a_bad_generation_default_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"generation_config.json: top_p is out of range: 1.5"):
        read(tmp_path, {"top_p": 1.5})
    with pytest.raises(EngineStartError, match=r"generation_config.json: temperature is out of range: -1"):
        read(tmp_path, {"temperature": -1})
    with pytest.raises(EngineStartError, match=r"generation_config.json: top_p is out of range: 0"):
        read(tmp_path, {"top_p": 0.0})  # every request that says nothing else would be refused
    with pytest.raises(EngineStartError, match=r"generation_config.json: top_k must be an integer"):
        read(tmp_path, {"top_k": 50.5})


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000, '{"a": \udcff}'.encode(errors="surrogateescape")])
def test_a_broken_config_json_is_named(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EngineStartError, match=r"config.json (is not valid JSON|must hold a JSON object)"):
        ModelConfig.from_dir(tmp_path)


def test_a_directory_without_config_json_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"is not a model directory: it has no config.json"):
        ModelConfig.from_dir(tmp_path)

"""Every tensor of a checkpoint is accounted for; broken files are named."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from penstock.engine.dummy_weights import fill_with_dummy_weights
from penstock.engine.errors import EngineStartError
from penstock.engine.model_config import ModelConfig
from penstock.engine.models import CausalLM, build_model
from penstock.engine.weight_files import find_weight_files
from penstock.engine.weights import load_weights

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "attention_bias": True,
}
LAYER_SHAPES = {
    "self_attn.q_proj.weight": (32, 16),
    "self_attn.q_proj.bias": (32,),
    "self_attn.k_proj.weight": (16, 16),
    "self_attn.k_proj.bias": (16,),
    "self_attn.v_proj.weight": (16, 16),
    "self_attn.v_proj.bias": (16,),
    "self_attn.o_proj.weight": (16, 32),
    "self_attn.o_proj.bias": (16,),
    "self_attn.q_norm.weight": (8,),
    "self_attn.k_norm.weight": (8,),
    "mlp.gate_proj.weight": (24, 16),
    "mlp.up_proj.weight": (24, 16),
    "mlp.down_proj.weight": (16, 24),
    "input_layernorm.weight": (16,),
    "post_attention_layernorm.weight": (16,),
}
SHAPES = {
    "model.embed_tokens.weight": (50, 16),
    "model.norm.weight": (16,),
    "lm_head.weight": (50, 16),
    **{f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER_SHAPES.items()},
}
Tensors = dict[str, Tensor]


@pytest.fixture
def tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def write(path: Path, tensors: Tensors, **config: object) -> Path:
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(tensors, path / "model.safetensors")
    return path


def write_sharded(path: Path, tensors: Tensors) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file_name, members in shards.items():
        save_file({name: tensors[name] for name in members}, path / file_name)
    weight_map = {name: file_name for file_name, members in shards.items() for name in members}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def built(model_dir: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    return build_model(ModelConfig.from_dir(model_dir), device="cpu", dtype=dtype)


def load(model_dir: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    model = built(model_dir, dtype)
    load_weights(model, model_dir, io.StringIO())
    return model


def test_tensors_land_side_by_side_in_the_fused_parameters(tensors: Tensors, tmp_path: Path) -> None:
    parameters = dict(load(write(tmp_path, tensors)).named_parameters())
    for layer in ("0", "1"):
        prefix = f"layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            parts = [tensors[f"model.{prefix}.{part}_proj.{kind}"] for part in "qkv"]
            assert torch.equal(parameters[f"{prefix}.qkv_proj.{kind}"], torch.cat(parts))
        gate_up = [tensors[f"model.layers.{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
        assert torch.equal(parameters[f"layers.{layer}.mlp.gate_up_proj.weight"], torch.cat(gate_up))
    assert torch.equal(parameters["lm_head.weight"], tensors["lm_head.weight"])


def test_a_sharded_checkpoint_is_the_same_as_a_whole_one(tensors: Tensors, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "sharded").mkdir()
    whole = load(write(tmp_path / "whole", tensors)).state_dict()
    sharded = load(write_sharded(tmp_path / "sharded", tensors)).state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_the_dtype_is_converted_on_the_way(tensors: Tensors, tmp_path: Path) -> None:
    model = load(write(tmp_path, tensors), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"].bfloat16())


def test_tied_embeddings_load_with_and_without_an_output_head(tensors: Tensors, tmp_path: Path) -> None:
    with_head = load(write(tmp_path, tensors, tie_word_embeddings=True))
    assert torch.equal(with_head.lm_head.weight, tensors["model.embed_tokens.weight"])
    del tensors["lm_head.weight"]
    without_head = load(write(tmp_path, tensors, tie_word_embeddings=True))
    assert without_head.lm_head.weight is without_head.embed_tokens.weight


def test_rotary_tables_of_old_checkpoints_are_skipped(tensors: Tensors, tmp_path: Path) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    load(write(tmp_path, tensors))


def lacks_one(tensors: Tensors) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def lacks_the_head(tensors: Tensors) -> None:
    del tensors["lm_head.weight"]


def lacks_many(tensors: Tensors) -> None:
    for name in LAYER_SHAPES:
        del tensors[f"model.layers.1.{name}"]


def has_one_more(tensors: Tensors) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(24, 16)


def has_another_shape(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(16, 17)


def has_integers(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.zeros(16, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacks_one, r"lacks tensor model.layers.1.mlp.up_proj.weight of Qwen3ForCausalLM"),
        (lacks_the_head, r"lacks tensor lm_head.weight"),
        (lacks_many, r"lacks tensors model.layers.1.input_layernorm.weight, .* and 10 more"),
        (has_one_more, r"model.safetensors has tensor model.layers.2.mlp.up_proj.weight, unknown to Qwen3ForCausalLM"),
        (has_another_shape, r"k_proj.weight has shape \[16, 17\], the model needs \[16, 16\]"),
        (has_integers, r"model.norm.weight is torch.int8, not a floating-point tensor"),
    ],
)
def test_a_tensor_that_does_not_match_is_named(
    change: Callable[[Tensors], None], message: str, tensors: Tensors, tmp_path: Path
) -> None:
    change(tensors)
    model_dir = write(tmp_path, tensors)
    with pytest.raises(EngineStartError, match=message):
        load(model_dir)


def test_a_tensor_in_two_files_is_named(tensors: Tensors, tmp_path: Path) -> None:
    write(tmp_path, tensors)
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, tmp_path / "more.safetensors")
    with pytest.raises(
        EngineStartError, match=r"tensor model.norm.weight is in both .*model.safetensors and .*more.safetensors"
    ):
        load(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 300, -100])
def test_a_truncated_file_is_named(size: int, tensors: Tensors, tmp_path: Path) -> None:
    path = write(tmp_path, tensors) / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(EngineStartError, match=r"cannot read the weight file .*model.safetensors"):
        load(tmp_path)


def test_a_file_of_rubbish_is_named(tensors: Tensors, tmp_path: Path) -> None:
    (write(tmp_path, tensors) / "model.safetensors").write_bytes(b"<!DOCTYPE html>" * 100)
    with pytest.raises(EngineStartError, match=r"cannot read the weight file .*model.safetensors"):
        load(tmp_path)


def test_a_missing_shard_is_named(tensors: Tensors, tmp_path: Path) -> None:
    (write_sharded(tmp_path, tensors) / "b.safetensors").unlink()
    with pytest.raises(EngineStartError, match=r"is incomplete: b.safetensors not found"):
        load(tmp_path)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "0123")
    with pytest.raises(EngineStartError, match=r"is incomplete: model.safetensors not found"):
        find_weight_files(tmp_path)


def test_an_index_may_not_lead_out_of_the_directory(tensors: Tensors, tmp_path: Path) -> None:
    write_sharded(tmp_path, tensors)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(EngineStartError, match=r"names a file outside the model directory"):
        find_weight_files(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(EngineStartError, match=r"loads \*.safetensors only"):
        find_weight_files(tmp_path)


def test_no_weights_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"has no weights: it needs model.safetensors"):
        find_weight_files(tmp_path)


def test_the_same_weights_in_the_authors_format_are_left_alone(tensors: Tensors, tmp_path: Path) -> None:
    write(tmp_path, tensors)
    save_file({"tok_embeddings.weight": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    assert [path.name for path in find_weight_files(tmp_path)] == ["model.safetensors"]


def test_dummy_weights_are_seeded_and_of_sane_scale(tensors: Tensors, tmp_path: Path) -> None:
    model_dir = write(tmp_path, tensors)
    models = [built(model_dir) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fill_with_dummy_weights(model, seed)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    logits = models[0].logits(torch.randn(100, 16, generator=torch.Generator().manual_seed(0)))
    assert 0.5 < float(logits.std()) < 2.0
    assert torch.equal(first["norm.weight"], torch.ones(16))

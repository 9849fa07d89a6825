"""Rotary tables are those transformers computes, for every kind and parameter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from penstock.engine.json_fields import JsonFields
from penstock.engine.rope import inverse_frequencies, make_cos_sin
from penstock.engine.rope_config import DefaultRope, DynamicRope, read_rope

HEAD_DIM = 64
MAX_POSITIONS = 4096
CPU = torch.device("cpu")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "llama3 of the configured length": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0},
    "yarn": YARN,
    "yarn without factor": {**YARN, "factor": None},
    "yarn with attention factor": {**YARN, "attention_factor": 0.75},
    "yarn with mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.3},
    "yarn with mscale alone": {**YARN, "mscale": 0.707},
    "yarn with betas": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0},
    "yarn not truncated": {**YARN, "truncate": False},
    "yarn that shrinks": {**YARN, "factor": 1.0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
def test_frequencies_are_those_of_transformers(kind: str, theta: float) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**KINDS[kind], "rope_theta": theta}
    config = LlamaConfig(max_position_embeddings=MAX_POSITIONS, head_dim=HEAD_DIM, rope_parameters=dict(parameters))
    expected, attention_factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, CPU)
    rope = read_rope(JsonFields("config.json", {"rope_parameters": parameters}), MAX_POSITIONS)
    torch.testing.assert_close(inverse_frequencies(rope, HEAD_DIM, MAX_POSITIONS), expected, rtol=1e-6, atol=0.0)
    assert getattr(rope, "attention_factor", 1.0) == pytest.approx(attention_factor)


def test_dynamic_has_one_base_for_the_configured_maximum() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config = LlamaConfig(max_position_embeddings=MAX_POSITIONS, head_dim=HEAD_DIM, rope_parameters=dict(parameters))
    rope = DynamicRope(10_000.0, 2.0, MAX_POSITIONS)
    for num_positions in (6000, 8192):
        expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, CPU, seq_len=num_positions)
        torch.testing.assert_close(inverse_frequencies(rope, HEAD_DIM, num_positions), expected, rtol=1e-6, atol=0.0)


def test_dynamic_is_plain_rope_up_to_the_original_context() -> None:
    plain = inverse_frequencies(DefaultRope(10_000.0), HEAD_DIM, MAX_POSITIONS)
    for num_positions in (100, MAX_POSITIONS):
        rope = DynamicRope(10_000.0, 2.0, MAX_POSITIONS)
        assert torch.equal(inverse_frequencies(rope, HEAD_DIM, num_positions), plain)


def test_the_table_holds_cosines_then_sines_of_every_position() -> None:
    table = make_cos_sin(DefaultRope(10_000.0), 4, 10, CPU)
    assert table.shape == (10, 4)
    assert table.dtype == torch.float32
    assert table[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    angles = (7.0, 7.0 / 100.0)
    assert table[7].tolist() == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=1e-6)


def test_yarns_attention_factor_is_multiplied_in() -> None:
    rope = read_rope(JsonFields("config.json", {"rope_parameters": {**YARN, "attention_factor": 0.5}}), MAX_POSITIONS)
    table = make_cos_sin(rope, HEAD_DIM, 20, CPU)
    norms = table.view(20, 2, HEAD_DIM // 2).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5))

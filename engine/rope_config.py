"""Which rotary position embedding a model uses, read from either style of config.json. No torch here.

Older files say `rope_theta` and `rope_scaling`, newer ones `rope_parameters` with the theta inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .json_fields import JsonFields

DEFAULT_THETA = 10_000.0
MAX_FACTOR = 1e6
"""Far beyond what any context is stretched by; keeps what is computed from it finite."""


@dataclass(frozen=True, slots=True)
class DefaultRope:
    """Rotary embeddings as published (arXiv 2104.09864)."""

    theta: float


@dataclass(frozen=True, slots=True)
class LinearRope:
    """Positions divided by `factor` (arXiv 2306.15595)."""

    theta: float
    factor: float


@dataclass(frozen=True, slots=True)
class DynamicRope:
    """NTK-aware base that depends on the longest sequence; here one base for the configured maximum.

    Up to `original_max_positions` the base is theta itself, so a server limited to that is exact.
    """

    theta: float
    factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp in between."""

    theta: float
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class YarnRope:
    """YaRN (arXiv 2309.00071): a ramp between interpolated and kept frequencies, cos and sin scaled by `attention_factor`."""

    theta: float
    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    """Whether the ramp's ends are rounded outwards to whole dimensions."""


RopeConfig = DefaultRope | LinearRope | DynamicRope | Llama3Rope | YarnRope


def read_rope(config: JsonFields, max_position_embeddings: int) -> RopeConfig:
    """The rotary embedding that config.json asks for; raises EngineStartError for an unknown or incomplete one."""
    fields = config.nested("rope_scaling") or config.nested("rope_parameters") or JsonFields(config.where, {})
    for source in (config, fields):
        if source.number("partial_rotary_factor", 1.0) != 1.0:
            raise source.error("partial_rotary_factor", "other than 1 is not supported")
    theta = fields.number("rope_theta", config.number("rope_theta", DEFAULT_THETA, above=0.0), above=0.0)
    rope_type = fields.string("rope_type", fields.string("type", "default"))
    match rope_type:
        case "default":
            return DefaultRope(theta)
        case "linear":
            return LinearRope(theta, _read_factor(fields))
        case "dynamic":
            return DynamicRope(theta, _read_factor(fields), max_position_embeddings)
        case "llama3":
            return _read_llama3(fields, theta, _original_max_positions(config, fields, max_position_embeddings))
        case "yarn":
            return _read_yarn(
                fields, theta, _original_max_positions(config, fields, max_position_embeddings), max_position_embeddings
            )
        case _:
            raise fields.error(
                "rope_type", f"{rope_type!r} is not supported; supported are default, linear, dynamic, llama3 and yarn"
            )


def _original_max_positions(config: JsonFields, fields: JsonFields, max_position_embeddings: int) -> int:
    in_fields = fields.integer("original_max_position_embeddings", max_position_embeddings)
    return config.integer("original_max_position_embeddings", in_fields)


def _read_factor(fields: JsonFields, default: float | None = None) -> float:
    factor = fields.number("factor", default, above=0.0)
    if factor > MAX_FACTOR:
        raise fields.error("factor", f"is out of range: {factor}")
    return factor


def _read_llama3(fields: JsonFields, theta: float, original_max_positions: int) -> Llama3Rope:
    low = fields.number("low_freq_factor", above=0.0)
    high = fields.number("high_freq_factor", above=0.0)
    if high <= low:
        raise fields.error("high_freq_factor", f"must be above low_freq_factor ({low:g}), not {high:g}")
    return Llama3Rope(theta, _read_factor(fields), low, high, original_max_positions)


def _read_yarn(fields: JsonFields, theta: float, original_max_positions: int, max_position_embeddings: int) -> YarnRope:
    if theta <= 1.0:
        raise fields.error("rope_theta", f"must be above 1 for yarn, not {theta:g}")
    factor = _read_factor(fields, max_position_embeddings / original_max_positions)
    return YarnRope(
        theta=theta,
        factor=factor,
        original_max_positions=original_max_positions,
        attention_factor=_yarn_attention_factor(fields, factor),
        beta_fast=fields.number("beta_fast", 32.0, minimum=0.0) or 32.0,
        beta_slow=fields.number("beta_slow", 1.0, minimum=0.0) or 1.0,
        truncate=fields.boolean("truncate", True),
    )


def _yarn_attention_factor(fields: JsonFields, factor: float) -> float:
    if fields.has("attention_factor"):
        return fields.number("attention_factor", minimum=0.0)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0

    mscale = fields.number("mscale", 0.0, minimum=0.0)
    mscale_all_dim = fields.number("mscale_all_dim", 0.0, minimum=0.0)
    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)

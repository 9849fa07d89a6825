"""The table of cosines and sines that rotates queries and keys, one row per position.

Frequencies follow the papers named in rope_config; where papers leave room (YaRN's ramp, Llama 3.1's smoothing) they follow
what transformers computes, in float32 and in the same order of operations, so that the tables agree to the last bit or nearly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .rope_config import DefaultRope, DynamicRope, LinearRope, Llama3Rope, RopeConfig, YarnRope


def make_cos_sin(rope: RopeConfig, head_dim: int, num_positions: int, device: torch.device) -> Tensor:
    """float32 [num_positions, head_dim]: head_dim / 2 cosines, then as many sines, for positions 0 .. num_positions - 1.

    YaRN's attention factor is multiplied in. `num_positions` is the configured maximum that fixes the base of a DynamicRope.
    """
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles = positions[:, None] * inverse_frequencies(rope, head_dim, num_positions).to(device)  # [num_positions, head_dim / 2]
    attention_factor = rope.attention_factor if isinstance(rope, YarnRope) else 1.0
    return torch.cat((angles.cos() * attention_factor, angles.sin() * attention_factor), dim=-1)


def inverse_frequencies(rope: RopeConfig, head_dim: int, num_positions: int) -> Tensor:
    """float32 [head_dim / 2] on the CPU: radians per position of each pair of dimensions."""
    match rope:
        case DefaultRope():
            return 1.0 / _wavelengths(rope.theta, head_dim)
        case LinearRope():
            return 1.0 / _wavelengths(rope.theta, head_dim) / rope.factor
        case DynamicRope():
            return 1.0 / _wavelengths(_dynamic_theta(rope, head_dim, num_positions), head_dim)
        case Llama3Rope():
            return _llama3(rope, head_dim)
        case YarnRope():
            return _yarn(rope, head_dim)


def _wavelengths(theta: float, head_dim: int) -> Tensor:
    """float32 [head_dim / 2]: positions per radian."""
    powers: Tensor = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    return powers


def _dynamic_theta(rope: DynamicRope, head_dim: int, num_positions: int) -> float:
    longest = max(num_positions, rope.original_max_positions)
    stretch = rope.factor * longest / rope.original_max_positions - (rope.factor - 1)
    return float(rope.theta * stretch ** (head_dim / (head_dim - 2)))


def _llama3(rope: Llama3Rope, head_dim: int) -> Tensor:
    kept = 1.0 / _wavelengths(rope.theta, head_dim)
    cycle = 2 * math.pi / kept  # positions per full turn
    stretched = kept / rope.factor
    smooth = (rope.original_max_positions / cycle - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = (1 - smooth) * stretched + smooth * kept
    frequencies = torch.where(cycle > rope.original_max_positions / rope.low_freq_factor, stretched, between)
    return torch.where(cycle < rope.original_max_positions / rope.high_freq_factor, kept, frequencies)


def _yarn(rope: YarnRope, head_dim: int) -> Tensor:
    def dimension_that_turns(num_turns: float) -> float:
        """The (fractional) dimension pair that makes this many full turns over the original context."""
        turns = rope.original_max_positions / (num_turns * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_that_turns(rope.beta_fast), dimension_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    wavelengths = _wavelengths(rope.theta, head_dim)
    kept_share = 1 - ramp
    return 1.0 / (rope.factor * wavelengths) * (1 - kept_share) + 1.0 / wavelengths * kept_share

"""Qwen3 (arXiv 2505.09388): each head's query and key is RMS-normed before it is rotated; no biases by default.

Layers from `max_window_layers` on may have a sliding window, as in Qwen2.
"""

from __future__ import annotations

from ..blocks import Attention, DecoderLayer, GatedMLP
from .causal_lm import CausalLM


class Qwen3ForCausalLM(CausalLM):
    def make_layer(self, index: int) -> DecoderLayer:
        config, place, window = self.config, self.place, self.config.layer_windows[index]
        attention = Attention(
            config, self.cos_sin, window=window, qkv_bias=config.qkv_bias, o_bias=config.o_bias, qk_norm=True, place=place
        )
        return DecoderLayer(config, attention, GatedMLP(config, bias=False, place=place), place)

"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): Llama with biases on queries, keys and values.

Layers from `max_window_layers` on may have a sliding window, the others see everything.
"""

from __future__ import annotations

from ..blocks import Attention, DecoderLayer, GatedMLP
from .causal_lm import CausalLM


class Qwen2ForCausalLM(CausalLM):
    def make_layer(self, index: int) -> DecoderLayer:
        config, place, window = self.config, self.place, self.config.layer_windows[index]
        attention = Attention(config, self.cos_sin, window=window, qkv_bias=True, o_bias=False, qk_norm=False, place=place)
        return DecoderLayer(config, attention, GatedMLP(config, bias=False, place=place), place)

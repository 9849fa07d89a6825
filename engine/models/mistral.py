"""Mistral (arXiv 2310.06825): Llama without biases, every layer with the same sliding window or none."""

from __future__ import annotations

from ..blocks import Attention, DecoderLayer, GatedMLP
from .causal_lm import CausalLM


class MistralForCausalLM(CausalLM):
    def make_layer(self, index: int) -> DecoderLayer:
        config, place, window = self.config, self.place, self.config.layer_windows[index]
        attention = Attention(config, self.cos_sin, window=window, qkv_bias=False, o_bias=False, qk_norm=False, place=place)
        return DecoderLayer(config, attention, GatedMLP(config, bias=False, place=place), place)

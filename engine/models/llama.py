"""Llama 1 to 3.3 (arXiv 2302.13971, 2407.21783): pre-norm, rotary embeddings, grouped queries, SwiGLU.

Biases are optional; the rotary embedding may be scaled (linear, dynamic, llama3, yarn).
"""

from __future__ import annotations

from ..blocks import Attention, DecoderLayer, GatedMLP
from .causal_lm import CausalLM


class LlamaForCausalLM(CausalLM):
    def make_layer(self, index: int) -> DecoderLayer:
        config, place = self.config, self.place
        attention = Attention(
            config, self.cos_sin, window=None, qkv_bias=config.qkv_bias, o_bias=config.o_bias, qk_norm=False, place=place
        )
        return DecoderLayer(config, attention, GatedMLP(config, bias=config.mlp_bias, place=place), place)

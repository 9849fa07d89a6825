"""The blocks of a decoder layer: attention over the paged KV cache, the gated MLP, and the layer that joins them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..kernels import ops
from .layers import ColumnLinear, OutputPart, Place, RMSNorm, RowLinear, WeightTarget
from .model_config import ModelConfig

KVCache = tuple[Tensor, Tensor]
"""One layer's keys and values, in the layout of `ops.make_kv_cache`."""


class Attention(nn.Module):
    """Grouped-query attention with rotary embeddings; writes the new tokens' keys and values, then reads all of the context."""

    def __init__(
        self,
        config: ModelConfig,
        cos_sin: Tensor,
        *,
        window: int | None,
        qkv_bias: bool,
        o_bias: bool,
        qk_norm: bool,
        place: Place,
    ) -> None:
        super().__init__()
        size = place.parallel.size
        num_kv_shards = min(size, config.num_kv_heads)
        self.head_dim, self.window, self.cos_sin = config.head_dim, window, cos_sin
        self.num_heads, self.num_kv_heads = config.num_heads // size, config.num_kv_heads // num_kv_shards
        self.qkv_proj = ColumnLinear(
            config.hidden_size,
            [
                OutputPart("q_proj", config.num_heads * config.head_dim, size),
                OutputPart("k_proj", config.num_kv_heads * config.head_dim, num_kv_shards),
                OutputPart("v_proj", config.num_kv_heads * config.head_dim, num_kv_shards),
            ],
            bias=qkv_bias,
            place=place,
        )
        self.o_proj = RowLinear(config.num_heads * config.head_dim, config.hidden_size, bias=o_bias, place=place)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, place=place) if qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, place=place) if qk_norm else None

    def forward(
        self,
        norm: RMSNorm,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        kv_cache: KVCache,
        batch: ops.AttentionBatch,
    ) -> tuple[Tensor, Tensor]:
        """(attention over the norm of x + residual, x + residual)."""
        qkv, residual = self.qkv_proj.of_norm(norm, x, residual)
        heads = qkv.view(len(qkv), -1, self.head_dim)
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        q, k, v = torch.split(heads, sizes, dim=1)  # [T, heads, head_dim] each
        k_cache, v_cache = kv_cache
        q = ops.rope_and_cache(
            q,
            k,
            v,
            positions,
            self.cos_sin,
            k_cache,
            v_cache,
            batch.kv_slots,
            None if self.q_norm is None else self.q_norm.weight,
            None if self.k_norm is None else self.k_norm.weight,
            0.0 if self.q_norm is None else self.q_norm.eps,
        )
        attended = ops.paged_attention(q, k_cache, v_cache, batch, self.head_dim**-0.5, self.window)
        return self.o_proj(attended.flatten(1)), residual

    def targets(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        yield from self.qkv_proj.targets(prefix)
        yield from self.o_proj.targets(f"{prefix}.o_proj")
        for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            if norm is not None:
                yield from norm.targets(f"{prefix}.{name}")


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202), gate and up in one product."""

    def __init__(self, config: ModelConfig, *, bias: bool, place: Place) -> None:
        super().__init__()
        size = place.parallel.size
        self.gate_up_proj = ColumnLinear(
            config.hidden_size,
            [OutputPart("gate_proj", config.intermediate_size, size), OutputPart("up_proj", config.intermediate_size, size)],
            bias=bias,
            place=place,
        )
        self.down_proj = RowLinear(config.intermediate_size, config.hidden_size, bias=bias, place=place)

    def forward(self, norm: RMSNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(the MLP of the norm of x + residual, x + residual)."""
        hidden, residual = self.gate_up_proj.silu_mul_of_norm(norm, x, residual)
        return self.down_proj(hidden), residual

    def targets(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        yield from self.gate_up_proj.targets(prefix)
        yield from self.down_proj.targets(f"{prefix}.down_proj")


class DecoderLayer(nn.Module):
    """Pre-norm layer. The residual stream is passed as two summands so that each addition is fused with the norm and the
    product behind it."""

    def __init__(self, config: ModelConfig, attention: Attention, mlp: GatedMLP, place: Place) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, place=place)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, place=place)

    def forward(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, kv_cache: KVCache, batch: ops.AttentionBatch
    ) -> tuple[Tensor, Tensor]:
        """x and residual [T, hidden] -> two summands [T, hidden] of the layer's output."""
        attended, residual = self.self_attn(self.input_layernorm, x, residual, positions, kv_cache, batch)
        output: tuple[Tensor, Tensor] = self.mlp(self.post_attention_layernorm, attended, residual)
        return output

    def targets(self, prefix: str) -> Iterator[tuple[str, WeightTarget]]:
        yield from self.self_attn.targets(f"{prefix}.self_attn")
        yield from self.mlp.targets(f"{prefix}.mlp")
        yield from self.input_layernorm.targets(f"{prefix}.input_layernorm")
        yield from self.post_attention_layernorm.targets(f"{prefix}.post_attention_layernorm")

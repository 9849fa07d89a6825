"""How much memory a model's weights and its requests' KV take."""

from __future__ import annotations

from .config import EngineConfig
from .model_config import DTYPE_BYTES, ModelConfig


def blocks_for(model_config: ModelConfig, config: EngineConfig, num_tokens: int) -> int:
    """Most KV blocks that a request of `num_tokens` owns at once, over all KV groups; windows give back what they left."""
    total = 0
    for group in model_config.kv_groups:
        num_blocks = -(-num_tokens // config.block_size)
        if group.window is not None:
            num_visible = group.window - 1 + config.max_num_batched_tokens
            num_blocks = min(num_blocks, (num_visible + config.block_size - 2) // config.block_size + 1)
        total += num_blocks
    return total


def longest_request(model_config: ModelConfig, config: EngineConfig, num_blocks: int, limit: int) -> int:
    """Tokens, at most `limit`, of the longest request that fits into `num_blocks`; whole blocks below the limit."""
    if blocks_for(model_config, config, limit) <= num_blocks:
        return limit
    fitting, too_long = 0, -(-limit // config.block_size)  # in rows of blocks
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        fits = blocks_for(model_config, config, middle * config.block_size) <= num_blocks
        fitting, too_long = (middle, too_long) if fits else (fitting, middle)
    return fitting * config.block_size


def count_block_bytes(model_config: ModelConfig, block_size: int, dtype: str) -> int:
    """Bytes of one KV block: a block id names a place in as many layers as the largest KV group has."""
    num_layers = max(len(group.layers) for group in model_config.kv_groups)
    return 2 * num_layers * block_size * model_config.num_kv_heads * model_config.head_dim * DTYPE_BYTES[dtype]


def count_parameters(config: ModelConfig) -> int:
    """Numbers in the model's weights, a tied output head counted once."""
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = config.hidden_size * (q_size + 2 * kv_size) + q_size * config.hidden_size
    attention += (q_size + 2 * kv_size) * config.qkv_bias + config.hidden_size * config.o_bias
    attention += 2 * config.head_dim * config.qk_norm
    mlp = 3 * config.hidden_size * config.intermediate_size
    mlp += (2 * config.intermediate_size + config.hidden_size) * config.mlp_bias
    vocab_tables = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return vocab_tables + config.num_layers * (attention + mlp + 2 * config.hidden_size) + config.hidden_size

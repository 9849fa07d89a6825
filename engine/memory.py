"""How a device's memory is divided: weights, activations, KV blocks. Computed from the configuration, without a trial run.

`plan_memory` either returns a plan that fits or raises EngineStartError with the numbers and the flag to change.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import EngineConfig
from .errors import EngineStartError
from .memory_probe import DeviceMemory
from .model_config import DTYPE_BYTES, ModelConfig
from .progress import format_bytes

DEFAULT_CPU_KV_BYTES = 1 << 30
CUDA_RESERVE_BYTES = 512 << 20
"""For what the libraries keep: matrix product workspaces, CUDA graphs, fragments of the allocator."""
ATTENTION_ROUND_ELEMENTS = 1 << 25
"""Attention's plain-PyTorch twin gathers keys and values, and makes scores, in rounds of about so many numbers."""
BYTES_PER_LOGIT = 16
"""Of all sampled rows: the product, its float32 copy, what logprobs keep of it and their log-softmax."""
SAMPLING_ROUND_LOGITS = 1 << 23
BYTES_PER_ROUND_LOGIT = 40
"""Rows are drawn in rounds of so many logits: sorted values, their indices, running sums, noise."""
SCORING_ROUND_LOGITS = 1 << 24
BYTES_PER_SCORED_LOGIT = 12
"""Prompts are scored in rounds of so many logits: the product, its log-softmax, a comparison."""
BYTES_PER_TOKEN_COUNT = 6
"""Of the token counts that penalties need: int32 numbers, and half of them again while they grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What goes where. `num_blocks` is the number of KV blocks that requests can own."""

    weights_bytes: int
    activation_bytes: int
    kv_cache_bytes: int
    num_blocks: int
    block_bytes: int
    block_size: int
    max_model_len: int
    num_full_length_requests: float
    """How many requests of max_model_len tokens fit at once."""
    dtype: str
    max_num_batched_tokens: int
    notes: tuple[str, ...]
    """What a person should know: a value that was lowered, and to what."""

    def table(self) -> str:
        """A small aligned table: weights, activations, KV cache, full-length requests; then the notes."""
        tokens = self.num_blocks * self.block_size
        rows = [
            ("weights", format_bytes(self.weights_bytes), self.dtype),
            ("activations", format_bytes(self.activation_bytes), f"at most, for {self.max_num_batched_tokens:,} tokens a step"),
            (
                "KV cache",
                format_bytes(self.kv_cache_bytes),
                f"{self.num_blocks:,} blocks of {self.block_size} tokens: {tokens:,} tokens",
            ),
            ("full-length requests", f"{self.num_full_length_requests:.1f}", f"of {self.max_model_len:,} tokens at once"),
        ]
        width = max(len(row[0]) for row in rows)
        size_width = max(len(row[1]) for row in rows)
        lines = [f"{name:<{width}}  {size:>{size_width}}  {detail}" for name, size, detail in rows]
        return "\n".join((*lines, *self.notes))


def plan_memory(model_config: ModelConfig, config: EngineConfig, memory: DeviceMemory, dtype: str) -> MemoryPlan:
    """Divides `memory` for running the model in `dtype`.

    On cuda weights, activations and KV cache together take `gpu_memory_utilization` of the whole device, or what is free if
    that is less; on the CPU the KV cache takes at most 1 GiB of that share of what is free. `kv_cache_memory_bytes` and
    `num_gpu_blocks_override` set the KV cache's size outright, as long as it fits into what is free.
    """
    if dtype not in DTYPE_BYTES:
        raise EngineStartError(f"--dtype must be auto, {', '.join(DTYPE_BYTES)}; not {dtype!r}")
    max_model_len = _asked_max_model_len(model_config, config)
    weights_bytes = count_parameters(model_config) * DTYPE_BYTES[dtype]
    activation_bytes = count_activation_bytes(model_config, config, dtype, max_model_len)
    if memory.device == "cuda":
        activation_bytes += CUDA_RESERVE_BYTES
    block_bytes = count_block_bytes(model_config, config.block_size, dtype)
    num_blocks = _num_blocks(config, memory, weights_bytes, activation_bytes, block_bytes)
    fitting_len = longest_request(model_config, config, num_blocks, max_model_len)
    notes: tuple[str, ...] = ()
    if fitting_len < max_model_len:
        max_model_len = _shorten(config, max_model_len, fitting_len, num_blocks)
        notes = (
            f"max_model_len lowered from the model's {model_config.default_max_model_len:,} to {max_model_len:,}: "
            "that is what fits into the KV cache",
        )
    return MemoryPlan(
        weights_bytes=weights_bytes,
        activation_bytes=activation_bytes,
        kv_cache_bytes=num_blocks * block_bytes,
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        block_size=config.block_size,
        max_model_len=max_model_len,
        num_full_length_requests=num_blocks / blocks_for(model_config, config, max_model_len),
        dtype=dtype,
        max_num_batched_tokens=config.max_num_batched_tokens,
        notes=notes,
    )


def _asked_max_model_len(model_config: ModelConfig, config: EngineConfig) -> int:
    """The context to plan for before it is known what fits."""
    max_model_len = model_config.default_max_model_len if config.max_model_len is None else config.max_model_len
    if max_model_len < 1:
        raise EngineStartError(f"--max-model-len must be at least 1, not {max_model_len}")
    if max_model_len > model_config.largest_max_model_len:
        raise EngineStartError(
            f"--max-model-len {max_model_len} is longer than the model's context: it can be at most "
            f"{model_config.largest_max_model_len}"
        )
    return max_model_len


def _num_blocks(config: EngineConfig, memory: DeviceMemory, weights_bytes: int, activation_bytes: int, block_bytes: int) -> int:
    needed = (
        f"weights take {format_bytes(weights_bytes)} and activations up to {format_bytes(activation_bytes)}, "
        f"{format_bytes(memory.free_bytes)} of {format_bytes(memory.total_bytes)} are free on {memory.device}"
    )
    left_bytes = memory.free_bytes - weights_bytes - activation_bytes
    asked = _asked_num_blocks(config, block_bytes)
    if asked is not None:
        flag, num_blocks = asked
        if num_blocks * block_bytes > left_bytes:
            raise EngineStartError(f"{flag} asks for {format_bytes(num_blocks * block_bytes)} of KV cache, but {needed}")
        return num_blocks
    usable_bytes = int(memory.total_bytes * config.gpu_memory_utilization)
    if memory.device == "cpu":
        usable_bytes = int(memory.free_bytes * config.gpu_memory_utilization)
    kv_bytes = min(usable_bytes, memory.free_bytes) - weights_bytes - activation_bytes
    if memory.device == "cpu":
        kv_bytes = min(kv_bytes, DEFAULT_CPU_KV_BYTES)
    if kv_bytes >= block_bytes:
        return kv_bytes // block_bytes
    if weights_bytes > memory.free_bytes:
        raise EngineStartError(f"not enough memory for the model: {needed}")
    raise EngineStartError(
        f"not enough memory for a KV cache: {needed}, and --gpu-memory-utilization {config.gpu_memory_utilization:g} allows "
        f"{format_bytes(max(0, usable_bytes))} in all; raise it, or lower --max-num-batched-tokens or --max-num-seqs"
    )


def _asked_num_blocks(config: EngineConfig, block_bytes: int) -> tuple[str, int] | None:
    """The flag that sets the KV cache's size outright, and how many blocks it means."""
    if config.num_gpu_blocks_override is not None:
        flag, num_blocks = "--num-gpu-blocks-override", config.num_gpu_blocks_override
    elif config.kv_cache_memory_bytes is not None:
        flag, num_blocks = "--kv-cache-memory-bytes", config.kv_cache_memory_bytes // block_bytes
    else:
        return None
    if num_blocks < 1:
        raise EngineStartError(f"{flag} is too small: one KV block takes {format_bytes(block_bytes)}")
    return flag, num_blocks


def _shorten(config: EngineConfig, max_model_len: int, fitting_len: int, num_blocks: int) -> int:
    """The context that fits, where nobody asked for a certain one."""
    if config.max_model_len is None and fitting_len > 0:
        return fitting_len
    raise EngineStartError(
        f"one request of {max_model_len:,} tokens does not fit into the {num_blocks:,} KV blocks: use --max-model-len "
        f"{fitting_len} or less, or raise --kv-cache-memory-bytes, --gpu-memory-utilization or --num-gpu-blocks-override"
    )


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


def count_activation_bytes(model_config: ModelConfig, config: EngineConfig, dtype: str, max_model_len: int) -> int:
    """An upper bound of what a step holds beside weights and KV cache, the rotary table included."""
    element_bytes, num_tokens = DTYPE_BYTES[dtype], config.max_num_batched_tokens
    q_size, kv_size = model_config.num_heads * model_config.head_dim, model_config.num_kv_heads * model_config.head_dim
    attention = 3 * q_size + 2 * kv_size  # q, k, v, the rotated q, the result
    mlp = 3 * model_config.intermediate_size  # gate, up, their product
    per_token = (3 * model_config.hidden_size + max(attention, mlp)) * (element_bytes + 4)  # and float32 copies
    rope_bytes = max_model_len * model_config.head_dim * 4
    block_table_bytes = config.max_num_seqs * -(-max_model_len // config.block_size) * len(model_config.kv_groups) * 4
    scratch_bytes = _attention_scratch_bytes(model_config, config, element_bytes, max_model_len)
    sampling_bytes = _sampling_bytes(model_config.vocab_size, config)
    return num_tokens * per_token + sampling_bytes + rope_bytes + block_table_bytes + scratch_bytes


def _sampling_bytes(vocab_size: int, config: EngineConfig) -> int:
    """Of drawing tokens for all requests or of scoring a step's prompts, whichever takes more; token counts stay."""
    num_logits = min(config.max_num_seqs, config.max_num_batched_tokens) * vocab_size
    drawing = num_logits * BYTES_PER_LOGIT + min(num_logits, SAMPLING_ROUND_LOGITS) * BYTES_PER_ROUND_LOGIT
    num_scored_logits = min(config.max_num_batched_tokens * vocab_size, max(vocab_size, SCORING_ROUND_LOGITS))
    counts = config.max_num_seqs * vocab_size * BYTES_PER_TOKEN_COUNT
    return max(drawing, num_scored_logits * BYTES_PER_SCORED_LOGIT) + counts


def _attention_scratch_bytes(model_config: ModelConfig, config: EngineConfig, element_bytes: int, max_model_len: int) -> int:
    """Of one layer: gathered keys and values with their float32 copies; scores, weights and mask."""
    one_request = max_model_len * model_config.num_kv_heads * model_config.head_dim
    gathered = min(max(ATTENTION_ROUND_ELEMENTS, one_request), config.max_num_seqs * one_request)
    one_query = max_model_len * model_config.num_heads
    scores = min(max(ATTENTION_ROUND_ELEMENTS, one_query), config.max_num_batched_tokens * one_query)
    return gathered * 2 * (element_bytes + 4) + scores * 9

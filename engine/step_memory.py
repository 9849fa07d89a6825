"""What a step takes beside weights and KV cache, counted from the configuration: upper bounds, line by line.

On CUDA the fused kernels are counted; on the CPU their plain-PyTorch twins, which gather and convert.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import EngineConfig
from .model_config import DTYPE_BYTES, ModelConfig

CUDA_GRAPH_BYTES = 3 << 30
"""What captured graphs may take: their memory pool and what the driver keeps of them."""
CUDA_LIBRARY_BYTES = 512 << 20
"""For matrix products' workspaces, loaded kernels, buffers that weights are converted in, fragments of the allocator."""
STEP_PADDING_TOKENS = 512
"""Steps are padded to multiples of at most so many tokens on CUDA."""
MAX_DECODE_QUERY_TOKENS = 4
"""Rows with at most so many new tokens are attended in parts that are merged in the end (kernels.attention_batch)."""
MAX_ATTENTION_PARTS = 16
"""Parts of one row's context; as many again for prefixes that several rows share."""
ATTENTION_ITEM_BYTES = 32
ATTENTION_ROUND_ELEMENTS = 1 << 25
"""Attention's plain-PyTorch twin gathers keys and values, and makes scores, in rounds of about so many numbers."""
BYTES_PER_EDITED_LOGIT = 12
"""On CUDA, of rows with penalties, biases or logprobs, beside the product: a float32 copy, its edit, its log-softmax."""
BYTES_PER_LOGIT = 16
"""On the CPU, of all sampled rows: the product, its float32 copy, what logprobs keep of it and their log-softmax."""
SAMPLING_ROUND_LOGITS = 1 << 23
BYTES_PER_ROUND_LOGIT = 40
"""On the CPU rows are drawn in rounds of so many logits: sorted values, their indices, running sums, noise."""
SCORING_ROUND_LOGITS = 1 << 24
BYTES_PER_SCORED_LOGIT = 12
"""Prompts are scored in rounds of so many logits: the product, its log-softmax, a comparison."""
BYTES_PER_TOKEN_COUNT = 6
"""Of the token counts that penalties need: int32 numbers, and half of them again while they grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Bytes by purpose."""

    activations: int
    logits: int
    """Logits, drawing tokens from them, scoring prompts."""
    attention: int
    """Workspaces of attention, of one layer: the next one uses them again."""
    tables: int
    """By slot and position: block tables, token counts, the rotary table."""
    graphs: int
    libraries: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.activations + self.logits + self.attention + self.tables + self.graphs + self.libraries


def count_step_memory(
    model_config: ModelConfig, config: EngineConfig, *, dtype: str, device: str, max_model_len: int
) -> StepMemory:
    """Of steps of max_num_batched_tokens tokens and max_num_seqs requests on "cuda" or "cpu"."""
    is_cuda, element_bytes = device == "cuda", DTYPE_BYTES[dtype]
    count_attention = _count_attention if is_cuda else _count_attention_twin
    return StepMemory(
        activations=_count_activations(model_config, config, element_bytes, is_cuda=is_cuda),
        logits=_count_logits(model_config.vocab_size, config, element_bytes, is_cuda=is_cuda),
        attention=count_attention(model_config, config, element_bytes, max_model_len),
        tables=_count_tables(model_config, config, max_model_len),
        graphs=CUDA_GRAPH_BYTES if is_cuda and not config.enforce_eager else 0,
        libraries=CUDA_LIBRARY_BYTES if is_cuda else 0,
    )


def _count_activations(model_config: ModelConfig, config: EngineConfig, element_bytes: int, *, is_cuda: bool) -> int:
    q_size, kv_size = model_config.num_heads * model_config.head_dim, model_config.num_kv_heads * model_config.head_dim
    attention = 3 * q_size + 2 * kv_size  # q, k, v, the rotated q, the result
    mlp = 3 * model_config.intermediate_size  # gate, up, their product
    per_token = 3 * model_config.hidden_size + max(attention, mlp)
    if not is_cuda:
        return config.max_num_batched_tokens * per_token * (element_bytes + 4)  # and float32 copies
    return _padded_tokens(config) * per_token * element_bytes


def max_deterministic_tokens(model_config: ModelConfig) -> int:
    """Tokens of a step whose partial results kernels can count in 32 bits when each is a row of attention."""
    most = (2**31 - 1) // (MAX_ATTENTION_PARTS * model_config.num_heads * model_config.head_dim)
    return most // STEP_PADDING_TOKENS * STEP_PADDING_TOKENS


def _padded_tokens(config: EngineConfig) -> int:
    """Tokens of the largest step on CUDA."""
    num_tokens = max(config.max_num_batched_tokens, config.max_num_seqs)
    return -(-num_tokens // STEP_PADDING_TOKENS) * STEP_PADDING_TOKENS


def _count_logits(vocab_size: int, config: EngineConfig, element_bytes: int, *, is_cuda: bool) -> int:
    """Of drawing tokens for all requests or of scoring a step's prompts, whichever takes more."""
    num_logits = config.max_num_seqs * vocab_size
    num_scored_logits = min(config.max_num_batched_tokens * vocab_size, max(vocab_size, SCORING_ROUND_LOGITS))
    scoring = num_scored_logits * BYTES_PER_SCORED_LOGIT
    if is_cuda:
        # The buffer of logits is there while prompts are scored.
        return num_logits * element_bytes + max(num_logits * BYTES_PER_EDITED_LOGIT, scoring)
    num_logits = min(num_logits, config.max_num_batched_tokens * vocab_size)
    drawing = num_logits * BYTES_PER_LOGIT + min(num_logits, SAMPLING_ROUND_LOGITS) * BYTES_PER_ROUND_LOGIT
    return max(drawing, scoring)


def _count_attention(model_config: ModelConfig, config: EngineConfig, element_bytes: int, max_model_len: int) -> int:
    """Partial results in float32, with their maximum and sum, and the list of work, once per KV group."""
    if config.deterministic:  # every token is such a row, and nothing is shared
        num_tokens, num_parts = _padded_tokens(config), MAX_ATTENTION_PARTS
    else:
        num_tokens = min(config.max_num_batched_tokens, config.max_num_seqs * MAX_DECODE_QUERY_TOKENS)
        num_parts = MAX_ATTENTION_PARTS * (2 if config.enable_prefix_caching else 1)
    per_part = model_config.num_heads * (model_config.head_dim + 2) * 4 + model_config.num_kv_heads * 4
    return num_tokens * num_parts * (per_part + ATTENTION_ITEM_BYTES) * len(model_config.kv_groups)


def _count_attention_twin(model_config: ModelConfig, config: EngineConfig, element_bytes: int, max_model_len: int) -> int:
    """Of one layer: gathered keys and values with their float32 copies; scores, weights and mask."""
    one_request = max_model_len * model_config.num_kv_heads * model_config.head_dim
    gathered = min(max(ATTENTION_ROUND_ELEMENTS, one_request), config.max_num_seqs * one_request)
    one_query = max_model_len * model_config.num_heads
    scores = min(max(ATTENTION_ROUND_ELEMENTS, one_query), config.max_num_batched_tokens * one_query)
    return gathered * 2 * (element_bytes + 4) + scores * 9


def _count_tables(model_config: ModelConfig, config: EngineConfig, max_model_len: int) -> int:
    rope_bytes = max_model_len * model_config.head_dim * 4
    num_columns = -(-max_model_len // config.block_size)
    block_table_bytes = (config.max_num_seqs + 1) * num_columns * len(model_config.kv_groups) * 4
    return rope_bytes + block_table_bytes + config.max_num_seqs * model_config.vocab_size * BYTES_PER_TOKEN_COUNT

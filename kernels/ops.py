"""The only door to the arithmetic of a step: one typed function per operation, for CPU and CUDA tensors alike.

Hot operations take tensors and host integers and never wait for the device. The twins in `reference_*` state what each
computes. Letters in shapes: T tokens, R requests, N rows of logits, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference_attention, reference_layers, reference_products, reference_sampling, reference_step
from .attention_batch import MAX_DECODE_QUERY_LEN, AttentionBatch, SharedChunks
from .step_state import SlotState, StepTensors, StepUpdates

__all__ = [
    "AttentionBatch",
    "SharedChunks",
    "add_norm_linear",
    "add_norm_linear_silu_mul",
    "add_rms_norm",
    "add_to_logits",
    "advance_step",
    "apply_penalties",
    "apply_step_updates",
    "count_tokens",
    "editable_logits",
    "invariant_linear",
    "invariant_silu_mul",
    "linear",
    "linear_silu_mul",
    "logit_thresholds_by_slot",
    "make_kv_cache",
    "paged_attention",
    "plan_attention",
    "prepare_step",
    "rms_norm",
    "rope_and_cache",
    "sample_tokens",
    "silu_mul",
    "top_logprobs",
]


def make_kv_cache(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(k_cache, v_cache) of one layer, zeroed, each [num_blocks, num_kv_heads, block_size, head_dim].

    One head's part of a block is contiguous, so that a kernel reads it as one piece.
    """
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467).

    x [..., n] of any float dtype, weight [n] of the same; the result has x's shape and dtype.
    """
    if x.is_cuda:
        from .triton_norms import rms_norm as fast

        return fast(x, weight, eps)
    return reference_layers.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual); x and residual [T, n] of one dtype."""
    if x.is_cuda:
        from .triton_norms import add_rms_norm as fast

        return fast(x, residual, weight, eps)
    return reference_layers.add_rms_norm(x, residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [T, 2 * I], gate in the first half; returns [T, I] (SwiGLU, arXiv 2002.05202)."""
    if gate_up.is_cuda:
        from .triton_swiglu import silu_mul as fast

        return fast(gate_up)
    return reference_layers.silu_mul(gate_up)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias: x [M, K], weight [N, K], bias [N] of one float dtype; [M, N] in it, summed in float32 or better.

    The last bits of a row may depend on M, never on what the other rows hold.
    """
    if x.is_cuda:
        from .triton_products import linear as fast

        return fast(x, weight, bias)
    return reference_products.linear(x, weight, bias)


def linear_silu_mul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu_mul(linear(x, weight, bias)): weight [2 * I, K] and bias [2 * I] hold the gates, then the ups; returns [M, I]."""
    if x.is_cuda:
        from .triton_products import linear_silu_mul as fast

        return fast(x, weight, bias)
    return reference_products.linear_silu_mul(x, weight, bias)


def add_norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(linear(rms_norm(h)), h) with h = x + residual, or x itself where there is none; x, residual and h [M, K].

    h is rounded to x's dtype where it is returned; one kernel need not round it, nor its norm, on the way to the product.
    """
    if x.is_cuda:
        from .triton_products import add_norm_linear as fast

        return fast(x, residual, norm_weight, eps, weight, bias)
    return reference_products.add_norm_linear(x, residual, norm_weight, eps, weight, bias)


def add_norm_linear_silu_mul(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(linear_silu_mul(rms_norm(h)), h), as in add_norm_linear."""
    if x.is_cuda:
        from .triton_products import add_norm_linear_silu_mul as fast

        return fast(x, residual, norm_weight, eps, weight, bias)
    return reference_products.add_norm_linear_silu_mul(x, residual, norm_weight, eps, weight, bias)


def invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Like linear, but each row of the result is bitwise the same whatever M is and wherever in x the row stands."""
    if x.is_cuda:
        from .triton_invariant import invariant_linear as fast

        return fast(x.contiguous(), weight, bias)
    return reference_products.invariant_linear(x, weight, bias)


def invariant_silu_mul(gate_up: Tensor) -> Tensor:
    """Like silu_mul, but each row of the result is bitwise the same whatever T is and wherever the row stands."""
    return silu_mul(gate_up) if gate_up.is_cuda else reference_layers.invariant_silu_mul(gate_up)


def rope_and_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_slots: Tensor,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Norms q and k per head where weights [D] are given, rotates both, writes k and v into the cache; returns the rotated q.

    q [T, Hq, D]; k, v [T, Hkv, D]; positions int64 [T], all below cos_sin's rows; cos_sin float32 [max_positions, D] = D / 2
    cosines, then D / 2 sines, for the pairs (i, i + D / 2) as in GPT-NeoX (RoPE, arXiv 2104.09864); caches as made by
    make_kv_cache; kv_slots int64 [T], no place twice, -1 for padding: nothing is written for it, its position may be anything.
    """
    arguments = (q, k, v, positions, cos_sin, k_cache, v_cache, kv_slots, q_norm_weight, k_norm_weight, eps)
    if q.is_cuda:
        from .triton_rope import rope_and_cache as fast

        return fast(*arguments)
    return reference_layers.rope_and_cache(*arguments)


def plan_attention(
    batch: AttentionBatch, num_heads: int, num_kv_heads: int, head_dim: int, window: int | None
) -> AttentionBatch:
    """The batch with its attention's work laid out, once per step, for all layers that keep their KV in one group.

    Queued on the device behind whatever writes row_slots, query_start and context_lens; may be captured in a graph, together
    with the layers or before them. Without it paged_attention plans for itself, in every layer.
    """
    if not batch.context_lens.is_cuda:
        return batch
    from .triton_decode_plan import plan_attention as fast

    batch = fast(batch, num_heads, num_kv_heads, head_dim, window)
    if batch.max_query_len > MAX_DECODE_QUERY_LEN:
        from .triton_prefill_plan import plan_prefill

        batch = plan_prefill(batch, num_heads, num_kv_heads, head_dim)
    return batch


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention of every new token to its request's context, q [T, Hq, D] -> [T, Hq, D] in q's dtype.

    Query head h reads KV head h // (Hq / Hkv). With a window w a query at position p sees keys p - w + 1 .. p. Accumulates in
    float32. The scores are multiplied by `scale`.
    """
    if q.is_cuda:
        from .triton_decode_attention import paged_decode_attention

        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        paged_decode_attention(q, k_cache, v_cache, batch, scale, window, out)
        if batch.max_query_len > MAX_DECODE_QUERY_LEN:
            from .triton_prefill_attention import paged_prefill_attention

            paged_prefill_attention(q, k_cache, v_cache, batch, scale, window, out)
        return out
    return reference_attention.paged_attention(q, k_cache, v_cache, batch, scale, window)


def sample_tokens(
    logits: Tensor, row_slots: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor, thresholds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A token per row, token_ids int64 [R], and is_valid bool [R]: whether the row's largest logit is finite (NaN is not).

    Row r has the parameters of slot row_slots[r] (int [R], within 0 .. S - 1 for padding rows too): temperatures float32 [S],
    0 for the likeliest token, the lowest id among equals, else at least 1e-5: the argmax of logits / temperature +
    reference_sampling.gumbel_noise (Gumbel-max, e.g. arXiv 1611.01144) among logits >= thresholds[r] (float32 [R], see
    logit_thresholds_by_slot; None keeps all); seeds int64 [S], >= 0; positions int32 or int64 [S]. logits [R, V] of any float
    dtype. The token of a row that is not valid may be any id of the vocabulary.
    """
    if logits.is_cuda:
        from .triton_sampling import sample_tokens as fast

        return fast(logits, row_slots, temperatures, seeds, positions, thresholds)
    return reference_sampling.sample_tokens(logits, row_slots, temperatures, seeds, positions, thresholds)


def logit_thresholds_by_slot(
    logits: Tensor, row_slots: Tensor, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """The lowest logit (as it is, not tempered) that min_p, then top_k, then top_p keep; float32 [R].

    On logits / temperature, min_p keeps tokens at least min_p times as likely as the likeliest; top_k the k likeliest; top_p
    (arXiv 1904.09751) of what is left the fewest likeliest whose share reaches p. Tokens that tie with the last one kept are
    kept. Row r has the parameters of slot row_slots[r], as in sample_tokens: temperatures float32, top_k int32 (0 is off),
    top_p float32 (1 is off), min_p float32 (0 is off), all [S].

    -inf where nothing is filtered: no filter, temperature 0, or a largest logit that is not finite. With min_p the value may
    be one that no logit has. logits [R, V] of any float dtype.
    """
    if logits.is_cuda:
        from .triton_thresholds import logit_thresholds_by_slot as fast

        return fast(logits, row_slots, temperatures, top_k, top_p, min_p)
    return reference_sampling.logit_thresholds_by_slot(logits, row_slots, temperatures, top_k, top_p, min_p)


def editable_logits(logits: Tensor) -> Tensor:
    """Logits of any float dtype as float32, which apply_penalties and add_to_logits change in place; a copy unless they are."""
    return logits.float()


def apply_penalties(
    logits: Tensor,
    rows: Tensor,
    token_counts: Tensor,
    count_rows: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """Penalizes rows [n] of logits float32 [N, V] in place: repetition (arXiv 1909.05858), then frequency, then presence.

    token_counts int32 [C, V] holds 2 * (times in the output) + (1 if in the prompt); logits row rows[i] uses counts row
    count_rows[i]. Both int64 [n], no row twice; the penalties float32 [n]. Repetition regards prompt and output, the others
    the output alone.
    """
    if logits.is_cuda:
        from .triton_logit_edits import apply_penalties as fast
    else:
        fast = reference_sampling.apply_penalties
    fast(logits, rows, token_counts, count_rows, repetition, frequency, presence)


def count_tokens(token_counts: Tensor, count_rows: Tensor, token_ids: Tensor) -> None:
    """Notes one more output token per row in token_counts (see apply_penalties); both int64 [n], no row twice."""
    if token_counts.is_cuda:
        from .triton_logit_edits import count_tokens as fast
    else:
        fast = reference_sampling.count_tokens
    fast(token_counts, count_rows, token_ids)


def add_to_logits(logits: Tensor, rows: Tensor, token_ids: Tensor, values: Tensor) -> None:
    """logits[rows[i], token_ids[i]] += values[i] in place: bias, and -inf for forbidden tokens. No pair twice; all [n]."""
    if logits.is_cuda:
        from .triton_logit_edits import add_to_logits as fast
    else:
        fast = reference_sampling.add_to_logits
    fast(logits, rows, token_ids, values)


def top_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-softmax of logits [N, V] of any float dtype at token_ids int64 [N] and at the num_top likeliest tokens.

    Returns ids int32 [N, 1 + num_top] (the token itself first, the others in falling order), their logprobs float32 of the
    same shape, and ranks int32 [N] (1 + number of likelier tokens).
    """
    if logits.is_cuda:
        from .triton_logprobs import top_logprobs as fast

        return fast(logits, token_ids, num_top)
    return reference_sampling.top_logprobs(logits, token_ids, num_top)


def apply_step_updates(state: SlotState, step: StepTensors, updates: StepUpdates) -> None:
    """Takes over what the host sends before a step: entries of block tables, started slots, the rows, the chunks' tokens."""
    if updates.words.is_cuda:
        from .triton_step_updates import apply_step_updates as fast

        return fast(state, step, updates)
    return reference_step.apply_step_updates(state, step, updates)


def prepare_step(state: SlotState, step: StepTensors, num_tokens: int, num_rows: int, block_size: int) -> None:
    """Fills in the step for num_tokens and num_rows, padding included, from its rows and from what the slots hold.

    Token ids (of decodes, and 0 for padding), positions, KV slots, context lengths, each row's last token; chunks' slots get
    the output position the plan says; num_steps goes up by one.
    """
    if state.num_computed.is_cuda:
        from .triton_step import prepare_step as fast

        return fast(state, step, num_tokens, num_rows, block_size)
    return reference_step.prepare_step(state, step, num_tokens, num_rows, block_size)


def advance_step(state: SlotState, step: StepTensors, token_ids: Tensor, is_valid: Tensor) -> None:
    """Writes down what the step's rows sampled, token_ids int64 [R] and is_valid bool [R], and counts their slots on.

    A token that is not valid becomes token 0 for its slot and INVALID_TOKEN in StepTensors.sampled.
    """
    if state.num_computed.is_cuda:
        from .triton_step import advance_step as fast

        return fast(state, step, token_ids, is_valid)
    return reference_step.advance_step(state, step, token_ids, is_valid)

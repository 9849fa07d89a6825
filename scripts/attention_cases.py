"""Cases of paged attention for `scripts.bench_kernels`: see kernel_cases."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from penstock.kernels import ops
from scripts.kernel_cases import Calls, Case, random_numbers


def _paged(
    query_len: int, context_len: int, num_rows: int, num_kv_heads: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor, ops.AttentionBatch]:
    """Caches of random blocks in random order, and a batch of equal rows over them."""
    block_size = 16
    blocks_per_row = -(-context_len // block_size)
    num_blocks = num_rows * blocks_per_row
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    k_cache, v_cache = (random_numbers(*shape, device=device) for _ in range(2))
    table = torch.randperm(num_blocks, device=device).int().view(num_rows, blocks_per_row)
    lengths = torch.tensor([[query_len] * num_rows, [context_len] * num_rows], dtype=torch.int32)
    batch = ops.AttentionBatch(
        block_table=table,
        row_slots=torch.arange(num_rows, dtype=torch.int32, device=device),
        query_start=torch.arange(0, num_rows * query_len + 1, query_len, dtype=torch.int32, device=device),
        context_lens=lengths[1].to(device),
        kv_slots=torch.zeros(num_rows * query_len, dtype=torch.int64, device=device),
        max_query_len=query_len,
        max_context_len=context_len,
        host_lengths=lengths,
    )
    return k_cache, v_cache, batch


def _gathered(cache: Tensor, batch: ops.AttentionBatch, context_len: int) -> Tensor:
    """The rows' keys or values as [rows, Hkv, context_len, D], contiguous: what torch's attention takes."""
    return cache[batch.block_table.long()].transpose(1, 2).flatten(2, 3)[:, :, :context_len].contiguous()


def decode_attention(num_rows: int, context_len: int, num_heads: int, num_kv_heads: int, head_dim: int) -> Case:
    def make(device: torch.device) -> Calls:
        k_cache, v_cache, batch = _paged(1, context_len, num_rows, num_kv_heads, head_dim, device)
        batch = ops.plan_attention(batch, num_heads, num_kv_heads, head_dim, None)
        q = random_numbers(num_rows, num_heads, head_dim, device=device)
        keys, values = (_gathered(cache, batch, context_len) for cache in (k_cache, v_cache))
        return Calls(
            lambda: ops.paged_attention(q, k_cache, v_cache, batch, head_dim**-0.5, None),
            lambda: functional.scaled_dot_product_attention(q.unsqueeze(2), keys, values, enable_gqa=True).squeeze(2),
        )

    num_bytes = 4 * num_rows * context_len * num_kv_heads * head_dim
    name = f"decode attention {num_rows} x {context_len} of {num_bytes >> 20} MiB"
    return Case(name, "read", num_bytes, num_bytes, make)


def prefill_attention(num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int) -> Case:
    """One prompt from its start."""

    def make(device: torch.device) -> Calls:
        k_cache, v_cache, batch = _paged(num_tokens, num_tokens, 1, num_kv_heads, head_dim, device)
        batch = ops.plan_attention(batch, num_heads, num_kv_heads, head_dim, None)
        q = random_numbers(num_tokens, num_heads, head_dim, device=device)
        keys, values = (_gathered(cache, batch, num_tokens) for cache in (k_cache, v_cache))

        def of_torch() -> Tensor:
            queries = q.transpose(0, 1).unsqueeze(0)
            attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
            return attended[0].transpose(0, 1)

        return Calls(lambda: ops.paged_attention(q, k_cache, v_cache, batch, head_dim**-0.5, None), of_torch)

    operations = 2 * num_tokens**2 * num_heads * head_dim  # two products, half of each visible
    footprint = 4 * num_tokens * (num_heads + num_kv_heads) * head_dim
    return Case(f"prefill attention {num_tokens}", "matmul", operations, footprint, make)

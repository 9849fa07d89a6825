"""What attention must know of a step: who queries, how much each may see, and where its keys and values lie."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """R requests with T new tokens together, for the layers of one KV group. All tensors lie on the model's device.

    Query i of request r sits at position `context_lens[r] - query_len[r] + i`. Only positions inside the context (and the
    window) are ever read, so the rest of a row of the block table, and of the last block, may hold anything.
    """

    block_table: Tensor
    """int32 [R, max_blocks]: the block that holds positions [column * block_size, (column + 1) * block_size)."""
    query_start: Tensor
    """int32 [R + 1]: request r's tokens are rows [query_start[r], query_start[r + 1]) of the batch."""
    context_lens: Tensor
    """int32 [R]: tokens in the KV cache after this step, the new ones included."""
    kv_slots: Tensor
    """int64 [T]: where each new token's key and value go, as block_id * block_size + offset."""
    max_query_len: int
    max_context_len: int
    host_lengths: Tensor | None = None
    """int32 [2, R] in CPU memory: query lengths and context lengths once more, for code that has to know them on the host and
    must not wait for the device. None: they are read from the device."""

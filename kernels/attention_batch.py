"""What attention must know of a step: who queries, how much each may see, and where its keys and values lie."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MAX_DECODE_QUERY_LEN = 4
"""Rows with so many query tokens at most are decodes to the kernels: split along their keys. Longer rows are prompts."""
MAX_SHARED_CHUNKS = 16
"""Shared chunks of one row, at most."""
SHARED_QUERY_ROWS = 64
"""A shared item takes so many pairs of member and query head of one KV head, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedChunks:
    """Stretches of keys that several rows read from the same physical blocks, so that each is read once for all of them.

    Only rows with one query token are members, only whole blocks before that token are shared, and a row's shared chunks are
    its leading ones: they cover positions 0 .. shared_lens[row] - 1. Only for KV groups without a window. The host builds the
    arrays (engine.shared_prefixes) and they hold for as long as the batch consists of the same rows.
    """

    members: Tensor
    """int32 [M]: rows of the batch, item by item."""
    items: Tensor
    """int32 [I, 5]: (first in `members`, number of members, first position, end position, index of the chunk in its rows'
    order). At most SHARED_QUERY_ROWS // (Hq / Hkv) members; an item of no members is padding."""
    shared_lens: Tensor
    """int32 [R]: positions of the row that shared items cover; 0 for rows that share nothing."""
    num_chunks: Tensor
    """int32 [R]: shared items that cover them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWork:
    """What ops.plan_attention worked out on the device for rows with few query tokens; used by all layers of a KV group."""

    items: Tensor
    """int32 [max_items, 8], fields as in triton_decode_plan."""
    num_items: Tensor
    """int32 [1]: how many of them are real."""
    partial_starts: Tensor
    """int32 [R]: where the row's partial results begin; negative: it has none."""
    row_parts: Tensor
    """int32 [R]: how many parts (splits and shared chunks) are merged into the row's result; 0: it is not ours."""
    max_partials: int
    """No more partial results than that, of one query token each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWork:
    """The tiles of the rows that are too long for the decode kernel; made by ops.plan_attention, used by all layers.

    A tile is a number of neighbouring query tokens of one row times all query heads that share a KV head, so that each key and
    value is read once for the whole group.
    """

    tiles: Tensor
    """int32 [max_tiles, 4]: first token in the batch, number of queries, position of the first query, slot. The tiles that see
    most come first; those of no queries are surplus and lie at the end."""
    tile_rows: int
    """Rows of a tile, a power of two: it has tile_rows // group queries, times the `group` query heads of a KV head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """R rows (requests) with T new tokens together, for the layers of one KV group. All tensors lie on the model's device.

    R and T may be padded: a row with context_lens 0 is padding, whatever its tokens, and so are tokens from query_start[R] on.
    Nothing is read or written for them, and what attention returns there is undefined. Query i of row r sits at position
    `context_lens[r] - query_len[r] + i`. Only positions inside the context (and the window) are ever read, so the rest of a
    slot's block table, and of the last block, may hold anything. Keys and values of a row's tokens before its new ones were
    complete before the step: no row reads what another one writes in the same step.
    """

    block_table: Tensor
    """int32 [S, max_blocks], by slot: the block that holds positions [column * block_size, (column + 1) * block_size)."""
    row_slots: Tensor
    """int32 [R]: the slot of each row of the batch."""
    query_start: Tensor
    """int32 [R + 1]: row r's tokens are rows [query_start[r], query_start[r + 1]) of the batch."""
    context_lens: Tensor
    """int32 [R]: tokens in the KV cache after this step, the new ones included; 0 for padding."""
    kv_slots: Tensor
    """int64 [T]: where each new token's key and value go, as block_id * block_size + offset; -1 for padding: nowhere."""
    max_query_len: int
    """No row has more query tokens; 1: a batch of decodes only."""
    max_context_len: int
    """No row has a longer context."""
    host_lengths: Tensor | None = None
    """int32 [2, R] in CPU memory: query lengths and context lengths once more, for the twin, which has to know them on the
    host. None: it reads them from the device."""
    shared: SharedChunks | None = None
    decode_work: DecodeWork | None = None
    """See ops.plan_attention."""
    prefill_work: PrefillWork | None = None
    """See ops.plan_attention."""
    is_invariant: bool = False
    """Each row's result is bitwise the same whatever else is in the batch. Only with max_query_len 1 and nothing shared, which
    is all that the kernels need for it; the twin then computes each row by itself. Rows may read keys and values that others of
    them write in the same step, as neighbouring tokens of a prompt do."""

"""How attention of prompt chunks is cut into tiles: sizes and an upper bound on the host, the tiles themselves on the device.

A tile is a number of neighbouring tokens of one row times all query heads that share a KV head, so that each key and value is
read once for the whole group. The tiles are listed once per step, for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_batch import MAX_DECODE_QUERY_LEN


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWork:
    """The tiles of those rows of an AttentionBatch that are too long for the decode kernel."""

    tiles: Tensor
    """int32 [max_tiles, 4]: first token in the batch, number of queries, position of the first query, slot (row of the block
    table). The tiles that see most come first; those with no queries are surplus and lie at the end."""
    tile_rows: int
    """Rows of a tile, a power of two: it has tile_rows // group queries, times the `group` query heads of a KV head."""


@dataclass(frozen=True, slots=True)
class KeyTiles:
    """How a program walks along the keys."""

    num_keys: int
    num_warps: int
    num_stages: int


def max_prefill_tiles(num_tokens: int, num_rows: int, queries_per_tile: int) -> int:
    """Most tiles that `num_tokens` tokens in `num_rows` rows can need, decodes not counted.

    The sum of ceil(n / Q) over the lengths n of R rows is at most (sum of n + R * (Q - 1)) / Q.
    """
    num_long_rows = min(num_rows, num_tokens // (MAX_DECODE_QUERY_LEN + 1))
    return (num_tokens + num_long_rows * (queries_per_tile - 1)) // queries_per_tile


def choose_tile_rows(num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """128 rows where that makes a tile for every multiprocessor, 64 where it does not or registers are short."""
    if dtype == torch.float32:
        return 32
    num_processors, shared_bytes = _limits(device)
    return 128 if num_tokens * num_heads >= 128 * num_processors and head_dim <= 128 and shared_bytes >= 160_000 else 64


def choose_key_tiles(tile_rows: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> KeyTiles:
    """Tiles of keys that leave room for two programs per multiprocessor, or one where heads are large."""
    if dtype == torch.float32:
        return KeyTiles(32, 4, 1)
    _, shared_bytes = _limits(device)
    num_warps = 8 if tile_rows >= 128 or head_dim > 128 else 4
    if shared_bytes < 160_000 and head_dim > 64:
        return KeyTiles(32, num_warps, 2)
    return KeyTiles(64, num_warps, 2)


def _limits(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, bytes of shared memory a program may have); for a CPU, which interprets, those of an H200."""
    if device.type == "cpu":
        return 132, 232_448
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin

"""Into how many and how large tiles attention of prompt chunks is cut: all that the host decides about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attention_batch import MAX_DECODE_QUERY_LEN

LARGE_SHARED_BYTES = 200_000
"""What programs on Hopper and on data-centre Blackwell GPUs can have, whose matrix products read operands from there."""
MAX_REGISTERS = 255
MANY_TOKENS = 4096
"""Steps of so many may hold prompts so long that their attention is worth other tiles."""


@dataclass(frozen=True, slots=True)
class KeyTiles:
    """How a program walks along the keys."""

    num_keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    """Per thread, where a limit lets more programs run side by side than the compiler would."""


def max_prefill_tiles(num_tokens: int, num_chunks: int, queries_per_tile: int) -> int:
    """Most tiles that `num_tokens` tokens can need in up to `num_chunks` rows, decodes not counted.

    The sum of ceil(n / Q) over the lengths n of R rows is at most (sum of n + R * (Q - 1)) / Q.
    """
    num_chunks = min(num_chunks, num_tokens // (MAX_DECODE_QUERY_LEN + 1))
    return (num_tokens + num_chunks * (queries_per_tile - 1)) // queries_per_tile


def choose_tile_rows(num_tokens: int, num_heads: int, head_dim: int, device: torch.device) -> int:
    """64 rows, or 128 where several programs of that size fit side by side and there are enough of them for all processors.

    As measured on an H200: 128 rows give a tenth more on prompts of 200 tokens to 8k, 64 a third more on short chunks.
    """
    num_processors, shared_bytes = _limits(device)
    is_large_step = num_tokens * num_heads >= 128 * num_processors
    return 128 if is_large_step and head_dim <= 128 and shared_bytes >= LARGE_SHARED_BYTES else 64


def choose_key_tiles(
    num_tokens: int, tile_rows: int, head_dim: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> KeyTiles:
    """As many keys as leave room for a second program, whose products run during the softmax of the first.

    As measured on an H200 at head size 128: 64 keys a tile and two stages instead of 32 and three give a twentieth more on a
    prompt of 8k, though 120 bytes a thread are spilled, nothing on one of 2k, and take a seventh from prompts of 200, whose
    attention is little beside the products.
    """
    if dtype == torch.float32:
        return KeyTiles(16, 8, 1)
    num_warps = 8 if tile_rows > 64 or head_dim > 128 else 4
    _, shared_bytes = _limits(device)
    num_keys = 64 if shared_bytes >= LARGE_SHARED_BYTES else 32
    # Elsewhere than on Hopper the compiler, if not told otherwise, spills a few registers to fit one more program.
    is_hopper = device.type != "cpu" and torch.cuda.get_device_capability(device)[0] == 9
    if not is_hopper or head_dim > 128:
        return KeyTiles(num_keys, num_warps, 2, None if is_hopper else MAX_REGISTERS)
    if tile_rows > 64 and head_dim > 64:
        takes_long_prompts = num_tokens >= MANY_TOKENS and head_dim == 128 and window is None
        return KeyTiles(64, num_warps, 2, 128) if takes_long_prompts else KeyTiles(32, num_warps, 3, 128)
    return KeyTiles(num_keys, num_warps, 3)


def _limits(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, bytes of shared memory a program may have); for a CPU, which interprets, those of an H200."""
    if device.type == "cpu":
        return 132, 232_448
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin  # type: ignore[attr-defined]

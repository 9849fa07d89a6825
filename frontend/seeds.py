"""Seeds of a request's children: one rule for every face, so that HTTP and Python give the same tokens."""

from __future__ import annotations

import hashlib

SEED_LIMIT = 2**63
"""Seeds are 0 .. SEED_LIMIT - 1."""


def child_seed(seed: int, index: int) -> int:
    """The seed of choice `index` (from 0) of a request with `n` choices.

    Choice 0 keeps the request's own seed, so that it equals the only choice of the same request with n = 1. Every other one
    takes the first 63 bits of blake2b over (seed, index): unlike seed + index, choices of neighbouring seeds never coincide.
    """
    if index == 0:
        return seed
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % SEED_LIMIT

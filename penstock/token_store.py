"""The output tokens of many requests in one array, filled step by step for all requests at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .engine.outputs import PlainTokens


class TokenStore:
    """Requests are numbered 1, 2, ...: their handles in the engine."""

    def __init__(self, max_tokens: Sequence[int]) -> None:
        """`max_tokens[i]` bounds the output of request i + 1."""
        self._starts = np.zeros(len(max_tokens) + 2, np.int64)
        np.cumsum(max_tokens, out=self._starts[2:])
        self._token_ids = np.empty(int(self._starts[-1]), np.int32)  # costs memory where it is written

    def put(self, plain: PlainTokens) -> None:
        """Keeps a step's tokens."""
        places = self._starts[plain.handles] + plain.positions
        for step, token_ids in enumerate(plain.token_ids):
            self._token_ids[places + step] = token_ids

    def get(self, request_id: int, start: int, end: int) -> list[int]:
        """Output tokens start .. end - 1 of a request."""
        first = int(self._starts[request_id])
        token_ids: list[int] = self._token_ids[first + start : first + end].tolist()
        return token_ids

"""Log-probabilities in OpenAI's two shapes: chat's list of tokens, completions' parallel lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .open_requests import LogprobRow
from .tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def chat_logprobs(tokenizer: Tokenizer, rows: Sequence[LogprobRow], num_top: int) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    content = []
    for row in rows:
        entries = [_chat_entry(tokenizer, *pair) for pair in zip(row.token_ids, row.logprobs, strict=True)]
        content.append({**entries[0], "top_logprobs": entries[1 : 1 + num_top]})
    return {"content": content, "refusal": None}


def _chat_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}


class CompletionLogprobs:
    """The `logprobs` of one completion choice; keeps the text offset from chunk to chunk."""

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = 0

    def of_prompt(self, token_ids: Sequence[int], rows: Sequence[LogprobRow]) -> dict[str, Any]:
        """Of an echoed prompt: its first token has none, `rows` are of the others."""
        first = self._block([(token_ids[0], None)])
        return join_logprobs([first, self.of(rows)])

    def of(self, rows: Sequence[LogprobRow]) -> dict[str, Any]:
        """Of the next tokens."""
        return self._block([(row.token_ids[0], row) for row in rows])

    def _block(self, tokens: Sequence[tuple[int, LogprobRow | None]]) -> dict[str, Any]:
        block: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for token_id, row in tokens:
            text = self._tokenizer.token_text(token_id)
            block["text_offset"].append(self._offset)
            block["tokens"].append(text)
            block["token_logprobs"].append(None if row is None else _finite(row.logprobs[0]))
            block["top_logprobs"].append(None if row is None else self._top(row))
            self._offset += len(text)
        return block

    def _top(self, row: LogprobRow) -> dict[str, float]:
        """The likeliest tokens and the token itself. Of tokens that read alike the likelier one stays."""
        top: dict[str, float] = {}
        for token_id, logprob in [
            *zip(row.token_ids[1 : 1 + self._num_top], row.logprobs[1:], strict=False),
            (row.token_ids[0], row.logprobs[0]),
        ]:
            top.setdefault(self._tokenizer.token_text(token_id), _finite(logprob))
        return top


def join_logprobs(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Blocks of parallel lists as one."""
    names = ("text_offset", "token_logprobs", "tokens", "top_logprobs")
    return {name: [value for block in blocks for value in block[name]] for name in names}


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB  # also for NaN

"""Tokens as they are written inside a JSON string, looked up by id: most tokens of a vocabulary stand for whole characters."""

from __future__ import annotations

import json

from .tokenizer import PieceReader, Tokenizer


class EscapedPieces(dict[int, bytes | None]):
    """Token id -> its text, escaped for JSON; None for a token that begins or ends within a character.

    Holds for tokens inside a text and on a character's border. Filled as ids are asked for; each is one of the logits'.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        super().__init__()
        self._reader = PieceReader(tokenizer, skip_special_tokens=skip_special_tokens, at_start=False)

    def __missing__(self, token_id: int) -> bytes | None:
        try:
            text = self._reader.read(token_id).decode()
        except UnicodeDecodeError:
            escaped = None
        else:
            escaped = escape(text)
        self[token_id] = escaped
        return escaped


def escape(text: str) -> bytes:
    """A text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()

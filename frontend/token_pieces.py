"""What each token contributes to a text, as bytes: the decoders of tokenizer.json, taken apart token by token.

A text is the UTF-8 reading of its tokens' bytes, one after the other; malformed bytes read as U+FFFD the way `bytes.decode`
with errors="replace" does it. That is what the `tokenizers` library does for byte-level vocabularies. For byte-fallback
vocabularies it turns a whole run of byte tokens into U+FFFD when any byte of the run is malformed; reading the run like any
other bytes keeps its good characters, and is the only reading that a stream of tokens can follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class TextError(ValueError):
    """Text that cannot be tokenized, or a tokenizer that cannot be used. The message is fit for clients."""


@dataclass(frozen=True, slots=True)
class PieceRules:
    """How a vocabulary entry turns into bytes."""

    piece: Callable[[str], bytes]
    """The bytes of a token that follows another one."""
    first_piece: Callable[[str], bytes]
    """The bytes of a text's first token: SentencePiece vocabularies drop its leading space."""


def piece_rules(decoder: dict[str, Any] | None) -> PieceRules:
    """The rules of tokenizer.json's `decoder`. Raises TextError for a decoder whose tokens have no bytes of their own."""
    if decoder is None:
        return PieceRules(piece=lambda token: f" {token}".encode(), first_piece=str.encode)
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if [kind for kind in kinds if kind != "Fuse"] == ["ByteLevel"]:
        return PieceRules(piece=_byte_level_piece, first_piece=_byte_level_piece)
    if not all(map(_is_sentencepiece_step, steps)):
        raise TextError(f"this tokenizer's decoder is not supported: {' + '.join(kinds)}")
    return _sentencepiece_rules(steps)


def _is_sentencepiece_step(step: dict[str, Any]) -> bool:
    match step["type"]:
        case "ByteFallback" | "Metaspace" | "Fuse":
            return True
        case "Replace":
            return "String" in step["pattern"]
        case "Strip":
            return (step["content"], step["start"], step["stop"]) == (" ", 1, 0)
    return False


def _sentencepiece_rules(steps: list[dict[str, Any]]) -> PieceRules:
    replacements = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
    metaspaces = [step for step in steps if step["type"] == "Metaspace"]
    replacements += [(step["replacement"], " ") for step in metaspaces]
    dropped_at_start = [step["replacement"] for step in metaspaces if step["prepend_scheme"] != "never"]
    has_byte_tokens = any(step["type"] == "ByteFallback" for step in steps)
    strips_text = any(step["type"] == "Strip" for step in steps)

    def piece(token: str) -> bytes:
        if has_byte_tokens and _BYTE_TOKEN.fullmatch(token):
            return bytes((int(token[3:5], 16),))
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    def first_piece(token: str) -> bytes:
        for char in dropped_at_start:
            token = token.replace(char, "")
        data = piece(token)
        return data.removeprefix(b" ") if strips_text else data

    return PieceRules(piece=piece, first_piece=first_piece)


_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the other 68 for the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def _byte_level_piece(token: str) -> bytes:
    """An added token with a character outside the alphabet, such as a space, is taken as it is written."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode()

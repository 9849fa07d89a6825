"""Prompts to token ids, off the event loop where that takes long, without tokenizing again what is known already.

A client of a chat sends the whole conversation with every turn. A prompt is cut in front of the special tokens that a chat
template writes between messages (`Boundaries`), and every part's ids are kept: the ids are exactly those of tokenizing the
whole, whichever parts are known. An answer that comes back is tokenized like any other text, not given the ids it was
generated with: a prompt's ids depend on its text alone, on every frontend and after every restart.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from .off_loop import LONG_TEXT_CHARS, off_loop_if
from .token_cache import TokenCache
from .tokenizer import NO_FRAME, Frame, Tokenizer

CACHE_BYTES = 32 << 20
MAX_CUT_CHARS = 1 << 20
"""A request whose texts have more is tokenized whole: cutting would hold the interpreter lock for too long."""
MAX_PARTS = 8192
"""Of all texts of a request together; those that would be more are tokenized whole."""
_LONG_TO_CUT_CHARS = 16 * LONG_TEXT_CHARS


@dataclass(slots=True)
class TokenCounts:
    """Of all prompts so far, running totals."""

    num_encoded: int = 0
    """Tokens that were made of text."""
    num_reused: int = 0
    """Tokens that were known."""


@dataclass(slots=True)
class _Part:
    text: str
    key: bytes | None = None
    """None: a whole text, not to be kept."""
    token_ids: array[int] | None = None


class PromptEncoder:
    """One model's. Belongs to one event loop."""

    def __init__(
        self, tokenizer: Tokenizer, cut_at: Collection[str], counts: TokenCounts, *, max_cache_bytes: int = CACHE_BYTES
    ) -> None:
        """`cut_at`: of the tokenizer's boundary tokens those that prompts are cut at."""
        self._tokenizer = tokenizer
        self._boundaries = tokenizer.boundaries(cut_at)
        self._counts = counts
        self._cache = TokenCache(max_cache_bytes)

    async def encode(self, texts: Sequence[str], *, add_special_tokens: bool, cache_salt: str = "") -> list[list[int]]:
        """What `Tokenizer.encode` says of each. What is known under one salt is not under another. Raises TextError."""
        frame = self._tokenizer.frame if add_special_tokens else NO_FRAME
        num_chars = sum(map(len, texts))
        if frame is None or num_chars > MAX_CUT_CHARS:
            prompts = [[_Part(text)] for text in texts]
        else:
            prompts = await off_loop_if(num_chars > _LONG_TO_CUT_CHARS, lambda: self._cut(texts, cache_salt))
        unknown = self._look_up(prompts)
        is_long = sum(len(part.text) for part in unknown) > LONG_TEXT_CHARS
        await off_loop_if(is_long, lambda: self._fill(prompts, add_special_tokens))
        self._keep(unknown)
        return [_joined(parts, frame or NO_FRAME) for parts in prompts]

    def _cut(self, texts: Sequence[str], cache_salt: str) -> list[list[_Part]]:
        """The texts in parts, or whole where there is nothing to cut them at, or too much."""
        digester = self._cache.digester(cache_salt)
        prompts, num_left = [], MAX_PARTS
        for text in texts:
            parts = self._boundaries.cut(text)
            if 1 < len(parts) <= num_left:
                num_left -= len(parts)
                prompts.append([_Part(part, digester.key(part)) for part in parts])
            else:
                prompts.append([_Part(text)])
        return prompts

    def _look_up(self, prompts: list[list[_Part]]) -> list[_Part]:
        """Fills in what is known, and returns the others."""
        unknown = []
        for part in chain.from_iterable(prompts):
            part.token_ids = None if part.key is None else self._cache.get(part.key)
            if part.token_ids is None:
                unknown.append(part)
            else:
                self._counts.num_reused += len(part.token_ids)
        return unknown

    def _fill(self, prompts: list[list[_Part]], add_special_tokens: bool) -> None:
        """Tokenizes what is unknown, neighbours together: every call hands the interpreter lock over and has to get it back."""
        for parts in prompts:
            for is_unknown, neighbours in groupby(parts, lambda part: part.token_ids is None):
                run = list(neighbours) if is_unknown else []
                for part, token_ids in zip(run, self._encode_run(run, add_special_tokens), strict=True):
                    part.token_ids = array("i", token_ids)

    def _encode_run(self, run: list[_Part], add_special_tokens: bool) -> list[list[int]]:
        if run and run[0].key is None:
            return [self._tokenizer.encode(run[0].text, add_special_tokens=add_special_tokens)]
        return self._encode_parts([part.text for part in run]) if run else []

    def _encode_parts(self, texts: list[str]) -> list[list[int]]:
        token_ids = self._tokenizer.encode("".join(texts), add_special_tokens=False)
        found = self._boundaries.cut_ids(token_ids, texts)
        return found or [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def _keep(self, unknown: list[_Part]) -> None:
        for part in unknown:
            if part.token_ids is not None:
                self._counts.num_encoded += len(part.token_ids)
                if part.key is not None:
                    self._cache.put(part.key, part.token_ids)


def _joined(parts: list[_Part], frame: Frame) -> list[int]:
    token_ids = array("i")
    for part in parts:
        token_ids += part.token_ids or array("i")
    if parts[0].key is None:
        return token_ids.tolist()
    return [*frame[0], *token_ids, *frame[1]]

"""Where a text can be cut so that its parts, tokenized each by itself, give the ids of the whole.

tokenizers looks for added tokens in the raw text first, leftmost and then longest; what lies between two of them is normalized,
split and merged by itself. So a text can be cut in front of an added token, but not of every one: not where another added token
may reach across the cut, nor where one looks at, or swallows, what is on the other side of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import tokenizers

_WORD_OR_SPACE = re.compile(r"[\w\s]")
_BETWEEN = "\0"


class Boundaries:
    """Cuts texts in front of some tokens; `cut` may be called from several threads at once."""

    def __init__(self, tokens: Collection[str], token_ids: frozenset[int]) -> None:
        """`tokens` are of `boundary_tokens`, `token_ids` of `ids_at_boundaries`."""
        self._pattern = re.compile("|".join(map(re.escape, sorted(tokens)))) if tokens else None
        self._token_ids = token_ids

    def cut(self, text: str) -> list[str]:
        """The parts, none of them empty; the first one may begin with something else."""
        starts = [match.start() for match in self._pattern.finditer(text)] if self._pattern else []
        if not starts:
            return [text] if text else []
        if starts[0]:
            starts.insert(0, 0)
        return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]

    def begins_at_one(self, text: str) -> bool:
        """The text begins with one of the tokens."""
        return self._pattern is not None and self._pattern.match(text) is not None

    def cut_ids(self, token_ids: list[int], parts: list[str]) -> list[list[int]] | None:
        """The ids of the parts among those of the parts' joined text; None if they do not tell."""
        starts = [index for index, token_id in enumerate(token_ids) if token_id in self._token_ids]
        if not self.begins_at_one(parts[0]):
            starts.insert(0, 0)
        if len(starts) != len(parts) or starts[0] != 0:
            return None
        return [token_ids[start:end] for start, end in zip(starts, [*starts[1:], len(token_ids)], strict=True)]


def boundary_tokens(backend: tokenizers.Tokenizer) -> list[str]:
    """The special tokens in front of which any text can be cut."""
    if backend.encode_special_tokens:
        return []
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized and token.content]
    contents = [token.content for token in added]
    tails = {content[start:] for content in contents for start in range(1, len(content))}
    insides = _BETWEEN.join(content[1:] for content in contents)
    looking_back = tuple(token.content for token in added if token.lstrip or token.single_word)
    return [
        content
        for content in (token.content for token in added if token.special)
        if not _WORD_OR_SPACE.match(content)
        and _BETWEEN not in content
        and content not in insides
        and not any(content[:end] in tails for end in range(1, len(content) + 1))
        and not any(other.startswith(content) for other in looking_back)
    ]


def ids_at_boundaries(backend: tokenizers.Tokenizer, tokens: Collection[str]) -> frozenset[int]:
    """The ids that a part cut in front of one of the tokens can begin with."""
    beginnings = tuple(tokens)
    added = backend.get_added_tokens_decoder().items()
    return frozenset(token_id for token_id, token in added if beginnings and token.content.startswith(beginnings))

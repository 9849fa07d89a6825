"""One request's tokens to text as they arrive, up to its stop strings; constant work per token.

With `shown` the text of the prompt without a character it leaves unfinished, the deltas and `finish()` add up so that
`shown + joined == tokenizer.decode(prompt + output)`. So the first output token keeps the leading space that SentencePiece
vocabularies drop at the start of a text, unless the prompt shows nothing (a beginning-of-text token alone). Incomplete
characters are held back and appear as U+FFFD only where a later token or `finish()` settles that they never get complete.

An end-of-sequence or stop token that ended the request is the caller's to leave out.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .escaped_pieces import EscapedPieces
from .stop_strings import StopMatcher
from .tokenizer import PieceReader, Tokenizer

_MAX_CHARACTER_BYTES = 4


class TextDelta(NamedTuple):
    """What a push yields."""

    text: str
    """Text that is final and was not given out before."""
    num_tokens_used: int
    """Of the pushed tokens: all, or those up to and with the one that completed a stop string."""
    stop_string: str | None
    """The stop string that ended the text; whatever comes after it is dropped."""


class Detokenizer:
    """The text of one request's output. Raises ValueError for an empty stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
        escaped_pieces: EscapedPieces | None = None,
    ) -> None:
        """`include_stop` keeps the stop string in the text; stop strings within the first `min_tokens` tokens do not count.

        `escaped_pieces` is the tokenizer's, for the same `skip_special_tokens`; without them `push_escaped` does nothing.
        """
        self._include_stop = include_stop
        self._matcher = StopMatcher(stop) if stop else None
        self._num_unmatched_tokens = min_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        tail = _last_bytes(tokenizer, prompt_token_ids, skip_special_tokens)
        self._utf8.decode(tail)
        self._pieces = PieceReader(tokenizer, skip_special_tokens=skip_special_tokens, at_start=not tail)
        self._escaped_pieces = None if stop else escaped_pieces
        self._is_between_characters = False  # known after the first push
        self._held: deque[str] = deque()  # the end of the text, where a stop string may have begun
        self._num_held_chars = 0
        self._stop_string: str | None = None

    def push_escaped(self, token_ids: Sequence[int]) -> bytes | None:
        """What `push` would yield, escaped for JSON, where a look at a table will do; None: nothing was done, `push` them."""
        pieces = self._escaped_pieces
        if pieces is None or not self._is_between_characters:
            return None
        if len(token_ids) == 1:
            return pieces[token_ids[0]]
        escaped = [piece for token_id in token_ids if (piece := pieces[token_id]) is not None]
        return b"".join(escaped) if len(escaped) == len(token_ids) else None

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """The text that is certain after these tokens. After a stop string was found nothing is used any more."""
        if self._matcher is None:
            text = self._utf8.decode(b"".join(map(self._pieces.read, token_ids)))
            self._is_between_characters = not (self._pieces.is_at_start or self._utf8.getstate()[0])
            return TextDelta(text, len(token_ids), None)
        if self._has_stopped():
            return TextDelta(text="", num_tokens_used=0, stop_string=self._stop_string)
        text = ""
        for num_used, token_id in enumerate(token_ids, start=1):
            text += self._match(self._matcher, self._utf8.decode(self._pieces.read(token_id)))
            if self._has_stopped():
                return TextDelta(text=text, num_tokens_used=num_used, stop_string=self._stop_string)
        return TextDelta(text=text, num_tokens_used=len(token_ids), stop_string=None)

    def finish(self) -> str:
        """What was held back: the beginning of a stop string that did not come, an incomplete character as U+FFFD."""
        if self._has_stopped():
            return ""  # an unfinished character came after the stop string
        return "".join(self._held) + self._utf8.decode(b"", final=True)

    def _has_stopped(self) -> bool:
        return self._stop_string is not None

    def _match(self, matcher: StopMatcher, text: str) -> str:
        """What may be given out after one more token, whose text this is."""
        if self._num_unmatched_tokens > 0:
            self._num_unmatched_tokens -= 1
            return text
        match = matcher.feed(text)
        if match is not None:
            self._stop_string = match.stop
            text = text[: match.end]
        if self._include_stop:
            return text
        self._held.append(text)
        self._num_held_chars += len(text)
        return self._release(len(match.stop) if match is not None else matcher.num_pending_chars)

    def _release(self, num_kept_chars: int) -> str:
        """Takes from what is held all but its last characters."""
        released = []
        while self._num_held_chars > num_kept_chars:
            chunk = self._held.popleft()
            cut = min(len(chunk), self._num_held_chars - num_kept_chars)
            released.append(chunk[:cut])
            self._num_held_chars -= cut
            if cut < len(chunk):
                self._held.appendleft(chunk[cut:])
        return "".join(released)


def _last_bytes(tokenizer: Tokenizer, token_ids: Sequence[int], skip_special_tokens: bool) -> bytes:
    """The end of the prompt's bytes: enough to hold an unfinished character, empty only if the prompt shows nothing."""
    reader = PieceReader(tokenizer, skip_special_tokens=skip_special_tokens, at_start=False)
    tail = b""
    for token_id in reversed(token_ids):
        tail = reader.read(token_id) + tail
        if len(tail) >= _MAX_CHARACTER_BYTES:
            break
    return tail

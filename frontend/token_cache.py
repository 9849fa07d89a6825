"""Token ids of parts of prompts, found again by a digest of the part's text; the least recently used go first.

The digest is keyed with a secret of this process, and with the request's cache salt: requests find only what requests of the
same salt have left, as in the engine's prefix cache, and nobody can tell from how long tokenizing takes what others have sent
under another salt. Texts are not kept.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections import OrderedDict

ENTRY_BYTES = 320
"""What an entry takes beside its ids."""
_DIGEST_BYTES = 16


class TokenCache:
    """Belongs to one thread, but for `digester`."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` bounds what all entries take."""
        self._max_bytes = max_bytes
        self._secret = secrets.token_bytes(hashlib.blake2b.MAX_KEY_SIZE)
        self._entries: OrderedDict[bytes, array[int]] = OrderedDict()
        self.num_bytes = 0

    def digester(self, salt: str) -> Digester:
        """Makes the keys of one request's parts."""
        return Digester(self._secret, salt)

    def get(self, key: bytes) -> array[int] | None:
        """The ids, int32, not to be changed."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, token_ids: array[int]) -> None:
        """Keeps them, unless they alone are too many."""
        if key in self._entries or _bytes_of(token_ids) > self._max_bytes:
            return
        self._entries[key] = token_ids
        self.num_bytes += _bytes_of(token_ids)
        while self.num_bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= _bytes_of(dropped)


class Digester:
    """Texts to keys, under one salt."""

    def __init__(self, secret: bytes, salt: str) -> None:
        key = hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), key=secret).digest()
        self._empty = hashlib.blake2b(key=key, digest_size=_DIGEST_BYTES)

    def key(self, text: str) -> bytes:
        """Any text has one, also one that is not valid Unicode."""
        state = self._empty.copy()
        state.update(text.encode("utf-8", "surrogatepass"))
        return state.digest()


def _bytes_of(token_ids: array[int]) -> int:
    return ENTRY_BYTES + len(token_ids) * token_ids.itemsize

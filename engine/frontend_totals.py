"""Running totals that frontends tell of themselves, summed over all of them, those that are gone included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

MAX_KEYS = 1000
"""Further ones are dropped: what a frontend says must not fill the engine's memory."""


class FrontendTotals:
    """Sums of one kind of totals, by key."""

    def __init__(self) -> None:
        self._of: dict[bytes, dict[str, int]] = {}
        self._of_gone: Counter[str] = Counter()

    def set(self, identity: bytes, totals: Mapping[str, int]) -> None:
        """Replaces what this frontend said before."""
        self._of[identity] = dict(list(totals.items())[:MAX_KEYS])

    def forget(self, identity: bytes) -> None:
        """The frontend is gone; what it told stays in the sum."""
        for key, count in self._of.pop(identity, {}).items():
            if key in self._of_gone or len(self._of_gone) < MAX_KEYS:
                self._of_gone[key] += count

    def sums(self) -> list[tuple[str, int]]:
        """Key and sum, in the order of keys."""
        sums = Counter(self._of_gone)
        for totals in self._of.values():
            sums.update(totals)
        return sorted(sums.items())

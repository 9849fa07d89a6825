"""Finding stop strings in a text that arrives in pieces.

An Aho-Corasick automaton (Aho and Corasick, CACM 18(6), 1975): linear in the text however many and long the stop strings
are, and its depth is exactly the longest end of the text that could still become a stop string.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A prefix of some stop string."""

    depth: int
    next: dict[str, _Node] = field(default_factory=dict)
    fallback: _Node | None = None
    """The longest proper suffix of this prefix that is a prefix too; None at the root."""
    match: str | None = None
    """The longest stop string that this prefix ends with."""


@dataclass(frozen=True, slots=True)
class StopMatch:
    """The stop string that ended first; of two that end together, the longer one."""

    stop: str
    end: int
    """Index just behind it in the text of this `feed`."""


class StopMatcher:
    """Follows one text. Raises ValueError for an empty stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        if not all(stop):
            raise ValueError("a stop string must not be empty")
        self._root = _build(stop)
        self._node = self._root

    @property
    def num_pending_chars(self) -> int:
        """Length of the longest end of the text so far that a stop string may begin with."""
        return self._node.depth

    def feed(self, text: str) -> StopMatch | None:
        """Reads on; on a match the rest of `text` is not read."""
        node = self._node
        for index, char in enumerate(text):
            while char not in node.next and node.fallback is not None:
                node = node.fallback
            node = node.next.get(char, node)
            if node.match is not None:
                self._node = node
                return StopMatch(stop=node.match, end=index + 1)
        self._node = node
        return None


def _build(stop: Sequence[str]) -> _Node:
    root = _Node(depth=0)
    for text in stop:
        node = root
        for char in text:
            node = node.next.setdefault(char, _Node(depth=node.depth + 1))
        node.match = text
    queue = deque(root.next.values())
    for child in root.next.values():
        child.fallback = root
    while queue:
        node = queue.popleft()
        for char, child in node.next.items():
            fallback = node.fallback
            while fallback is not None and char not in fallback.next:
                fallback = fallback.fallback
            child.fallback = root if fallback is None else fallback.next[char]
            child.match = child.match or child.fallback.match
            queue.append(child)
    return root

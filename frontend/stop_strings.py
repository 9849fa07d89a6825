"""Finding stop strings in a text that arrives in pieces.

An Aho-Corasick automaton (Aho and Corasick, CACM 18(6), 1975): linear in the text however many and long the stop strings
are, and its depth is exactly the longest end of the text that could still become a stop string.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


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
        self._states = _States(stop)
        self._state = 0

    @property
    def num_pending_chars(self) -> int:
        """Length of the longest end of the text so far that a stop string may begin with."""
        return self._states.depth[self._state]

    def feed(self, text: str) -> StopMatch | None:
        """Reads on; on a match the rest of `text` is not read."""
        states, state = self._states, self._state
        for index, char in enumerate(text):
            state = states.after(state, char)
            stop = states.match[state]
            if stop is not None:
                self._state = state
                return StopMatch(stop=stop, end=index + 1)
        self._state = state
        return None


class _States:
    """One state for every prefix of a stop string, numbered in parallel lists; 0 is the empty prefix."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        """The prefix that is one character longer."""
        self.depth = [0]
        """The prefix's length."""
        self.match: list[str | None] = [None]
        """The longest stop string that the prefix ends with."""
        self.fallback = [0]
        """The longest proper end of the prefix that is a prefix too."""
        for text in stop:
            self._add(text)
        self._link()

    def after(self, state: int, char: str) -> int:
        """The state after one more character."""
        while char not in self.next[state]:
            if state == 0:
                return 0
            state = self.fallback[state]
        return self.next[state][char]

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self.next[state]:
                self.next[state][char] = len(self.next)
                self.next.append({})
                self.depth.append(self.depth[state] + 1)
                self.match.append(None)
                self.fallback.append(0)
            state = self.next[state][char]
        self.match[state] = stop

    def _link(self) -> None:
        queue = deque(self.next[0].values())  # breadth first: what a state falls back to is shorter and already linked
        while queue:
            state = queue.popleft()
            for char, child in self.next[state].items():
                self.fallback[child] = self.after(self.fallback[state], char)
                self.match[child] = self.match[child] or self.match[self.fallback[child]]
                queue.append(child)

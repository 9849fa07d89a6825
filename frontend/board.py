"""What the frontends of one server know of each other: who is ready, and how many connections each holds.

A page of shared memory with two 32-bit numbers per frontend. Each is written by its frontend alone, in one store, and read by
all; nobody waits for anybody. Whoever starts the frontends makes the page and hands it down, as it does the listening socket.
A place whose frontend was killed keeps its figures until a successor takes it.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from enum import IntEnum

_FIELDS = 2
_BYTES = _FIELDS * 4


class Presence(IntEnum):
    """How far a frontend is."""

    ABSENT = 0
    NOT_READY = 1
    READY = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands on the board of one frontend."""

    presence: int
    num_connections: int


def make_board(num_frontends: int) -> int:
    """A file descriptor of an empty board, to be inherited; whoever makes it closes it."""
    fd = os.memfd_create("penstock-board")
    os.ftruncate(fd, num_frontends * _BYTES)
    return fd


class Place:
    """One frontend's place on a board; without a board it is alone."""

    def __init__(self, board_fd: int | None = None, number: int = 0) -> None:
        board = mmap.mmap(-1, _BYTES) if board_fd is None else mmap.mmap(board_fd, 0)
        self._numbers = memoryview(board).cast("i")
        self._number = number
        self._at = number * _FIELDS
        self.show(Presence.ABSENT)
        self.show_connections(0)

    def show(self, presence: Presence) -> None:
        """Tells the others how far this frontend is."""
        self._numbers[self._at] = presence

    def show_connections(self, num: int) -> None:
        """Tells the others how many connections this frontend holds."""
        self._numbers[self._at + 1] = num

    @property
    def mine(self) -> Entry:
        """What the others see of this frontend."""
        return self._entry(self._number)

    def others(self) -> dict[int, Entry]:
        """The frontends that are present, by number, but for this one."""
        numbers = range(len(self._numbers) // _FIELDS)
        entries = {number: self._entry(number) for number in numbers if number != self._number}
        return {number: entry for number, entry in entries.items() if entry.presence != Presence.ABSENT}

    @property
    def all_ready(self) -> bool:
        """Whether every frontend that there should be is ready."""
        return all(presence == Presence.READY for presence in self._numbers[::_FIELDS])

    def _entry(self, number: int) -> Entry:
        return Entry(*self._numbers[number * _FIELDS : (number + 1) * _FIELDS])

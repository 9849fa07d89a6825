from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from penstock.frontend.board import Entry, Place, Presence, make_board


@pytest.fixture
def board_fd() -> Iterator[int]:
    fd = make_board(3)
    yield fd
    os.close(fd)


def test_frontends_see_what_the_others_show(board_fd: int) -> None:
    first, last = Place(board_fd, 0), Place(board_fd, 2)
    assert first.others() == {}
    last.show(Presence.NOT_READY)
    last.show_connections(70_000)
    assert first.others() == {2: Entry(Presence.NOT_READY, 70_000)}
    assert last.mine == Entry(Presence.NOT_READY, 70_000)


def test_all_are_ready_when_every_frontend_there_should_be_is(board_fd: int) -> None:
    places = [Place(board_fd, number) for number in range(3)]
    for place in places:
        assert not place.all_ready
        place.show(Presence.READY)
    assert places[0].all_ready
    places[1].show(Presence.ABSENT)
    assert not places[0].all_ready


def test_a_successor_begins_with_nothing(board_fd: int) -> None:
    killed, other = Place(board_fd, 0), Place(board_fd, 1)
    killed.show(Presence.READY)
    killed.show_connections(5)
    successor = Place(board_fd, 0)
    assert other.others() == {}
    successor.show(Presence.NOT_READY)
    assert other.others() == {0: Entry(Presence.NOT_READY, 0)}


def test_a_frontend_without_a_board_is_alone() -> None:
    alone = Place()
    assert alone.others() == {}
    alone.show(Presence.READY)
    assert alone.all_ready

"""Which rows share which chunks, against what their block tables say block by block."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.engine.shared_prefixes import MIN_CHUNK_TOKENS, SharedArrays, find_shared_chunks

BLOCK_SIZE = 64
CHUNK_BLOCKS = MIN_CHUNK_TOKENS // BLOCK_SIZE


def tables(*rows: list[int]) -> list[NDArray[np.int32]]:
    return [np.array(row, np.int32) for row in rows]


def find(
    block_tables: list[NDArray[np.int32]], *, members_per_item: int = 16, max_chunks: int = 16, block_size: int = BLOCK_SIZE
) -> SharedArrays | None:
    return find_shared_chunks(block_tables, block_size=block_size, members_per_item=members_per_item, max_chunks=max_chunks)


def members_of_items(found: SharedArrays) -> list[list[int]]:
    return [found.members[first : first + count].tolist() for first, count, *_ in found.items.tolist()]


def test_rows_that_start_alike_share_whole_chunks_and_no_more() -> None:
    prefix = list(range(2 * CHUNK_BLOCKS + 1))
    found = find(tables([*prefix, 100], [200] * 20, [*prefix, 101, 102], []))
    assert found is not None
    assert members_of_items(found) == [[0, 2], [0, 2]]
    assert found.items[:, 2:].tolist() == [[0, MIN_CHUNK_TOKENS, 0], [MIN_CHUNK_TOKENS, 2 * MIN_CHUNK_TOKENS, 1]]
    assert found.shared_lens.tolist() == [2 * MIN_CHUNK_TOKENS, 0, 2 * MIN_CHUNK_TOKENS, 0]
    assert found.num_chunks.tolist() == [2, 0, 2, 0]
    for array in (found.members, found.items, found.shared_lens, found.num_chunks):
        assert array.dtype == np.int32


@pytest.mark.parametrize(
    "block_tables",
    [
        [],
        tables([], []),
        tables(list(range(9))),
        tables(list(range(9)), list(range(100, 109))),
        tables([*range(CHUNK_BLOCKS - 1), 50], [*range(CHUNK_BLOCKS - 1), 51]),
        tables([7, 1, 2, 3, 4, 5], [8, 1, 2, 3, 4, 5]),
    ],
    ids=["no-rows", "no-blocks", "alone", "strangers", "less-than-a-chunk", "another-start"],
)
def test_nothing_is_shared(block_tables: list[NDArray[np.int32]]) -> None:
    assert find(block_tables) is None


def test_groups_part_ways_like_a_tree() -> None:
    trunk, left, right = list(range(CHUNK_BLOCKS)), list(range(100, 100 + CHUNK_BLOCKS)), list(range(200, 200 + CHUNK_BLOCKS))
    found = find(tables([*trunk, *left], [*trunk, *right], [*trunk, *left], trunk, [*trunk, *right, 7]))
    assert found is not None
    assert members_of_items(found) == [[0, 1, 2, 3, 4], [0, 2], [1, 4]]
    assert found.num_chunks.tolist() == [2, 2, 2, 1, 2]


def test_large_groups_are_dealt_out_to_several_items() -> None:
    found = find(tables(*[list(range(CHUNK_BLOCKS))] * 5), members_per_item=2)
    assert found is not None
    assert members_of_items(found) == [[0, 1], [2, 3], [4]]


def test_long_prefixes_come_in_longer_chunks() -> None:
    found = find(tables(*[list(range(9 * CHUNK_BLOCKS))] * 2), max_chunks=4)
    assert found is not None
    ends = [2 * chunk * MIN_CHUNK_TOKENS for chunk in range(5)]
    assert found.items[:, 2:].tolist() == [[ends[chunk], ends[chunk + 1], chunk] for chunk in range(4)]


@pytest.mark.parametrize("block_size", [16, 32, 64, 512])
def test_random_tables_are_covered_exactly_as_far_as_they_agree(block_size: int) -> None:
    chooser = random.Random(block_size)
    for _ in range(50):
        rows: list[list[int]] = []
        for _ in range(chooser.randrange(1, 12)):
            inherited = chooser.choice(rows)[: chooser.randrange(80)] if rows and chooser.random() < 0.8 else []
            rows.append([*inherited, *(chooser.randrange(10**6) for _ in range(chooser.randrange(40)))])
        found = find(tables(*rows), block_size=block_size, members_per_item=3, max_chunks=5)
        if found is None:
            continue
        covered = [0] * len(rows)
        for members, (_, count, first, end, chunk) in zip(members_of_items(found), found.items.tolist(), strict=True):
            assert 1 <= count <= 3
            assert chunk < 5
            columns = slice(first // block_size, end // block_size)
            for row in members:
                assert rows[row][columns] == rows[members[0]][columns]
                assert len(rows[row]) * block_size >= end
                assert covered[row] == first
                covered[row] = end
        assert covered == found.shared_lens.tolist()

"""Runs of tokens of several steps become one each."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from penstock.engine.token_runs import TokenRuns, chain, join, one_length_runs


def runs_of(told: list[tuple[int, int, list[int]]]) -> TokenRuns:
    ids, positions, counts = np.array([(i, p, len(t)) for i, p, t in told], np.int32).T
    return TokenRuns(ids, positions, counts, np.array([token_id for *_, tokens in told for token_id in tokens], np.int32))


def read(runs: TokenRuns) -> list[tuple[int, int, list[int]]]:
    ends = np.cumsum(runs.counts).tolist()
    counts = runs.counts.tolist()
    tokens = [runs.token_ids[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]
    return list(zip(runs.request_ids.tolist(), runs.positions.tolist(), tokens, strict=True))


@given(
    stories=st.dictionaries(
        st.integers(1, 2**31 - 1), st.tuples(st.integers(0, 2**20), st.lists(st.integers(0, 4), max_size=5)), min_size=1
    ),
    dice=st.randoms(use_true_random=False),
)
def test_whatever_was_told_in_pieces_is_whole(stories: dict[int, tuple[int, list[int]]], dice: random.Random) -> None:
    pieces, expected = [], []
    for request_id, (start, counts) in sorted(stories.items()):
        position = start
        for count in [*counts, 0]:  # the last says nothing more
            pieces.append((request_id, position, list(range(position, position + count))))
            position += count
        expected.append((request_id, start, list(range(start, position))))
    in_order = {request_id: iter([p for p in pieces if p[0] == request_id]) for request_id in stories}
    owners = [piece[0] for piece in pieces]
    dice.shuffle(owners)
    runs = chain([runs_of([next(in_order[owner])]) for owner in owners])
    assert read(join(runs)) == expected
    assert read(join(join(runs))) == expected


def test_a_part_has_its_own_tokens() -> None:
    runs = runs_of([(1, 0, [1, 2]), (2, 5, []), (3, 1, [3])])
    assert read(runs.part(1, 3)) == [(2, 5, []), (3, 1, [3])]


def test_a_step_of_several_tokens_each() -> None:
    tokens = np.array([[1, 2], [3, 4], [5, 6]], np.int32)
    runs = one_length_runs(np.array([8, 9], np.int32), np.array([0, 4], np.int32), tokens)
    tokens[:] = 0
    assert read(runs) == [(8, 0, [1, 3, 5]), (9, 4, [2, 4, 6])]

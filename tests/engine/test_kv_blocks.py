"""Block tables, prefix hits and windows, spelled out in block ids. Blocks hold 4 tokens here."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from penstock.engine.errors import IntegrityError
from penstock.engine.kv_blocks import BlockTable, KVBlocks, PrefixHit, extend_block_hashes


def make_blocks(num_blocks: int = 20, windows: Sequence[int | None] = (None,), max_step_tokens: int = 8) -> KVBlocks:
    return KVBlocks(num_blocks=num_blocks, block_size=4, windows=windows, max_step_tokens=max_step_tokens, caches_prefixes=True)


def hashes_of(token_ids: Sequence[int], salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    extend_block_hashes(hashes, array("i", token_ids), 4, salt)
    return hashes


def no_hit(blocks: KVBlocks) -> PrefixHit:
    return blocks.find_prefix((), 0)


def compute(blocks: KVBlocks, token_ids: Sequence[int], salt: str = "") -> BlockTable:
    """A request whose tokens are computed 8 at a time, and registered."""
    table = blocks.open(no_hit(blocks))
    for start in range(0, len(token_ids), 8):
        end = min(start + 8, len(token_ids))
        assert blocks.grow(table, start, end) is not None
        blocks.register(table, hashes_of(token_ids, salt), end // 4)
    return table


def test_blocks_come_on_demand() -> None:
    blocks = make_blocks()
    table = blocks.open(no_hit(blocks))
    assert blocks.grow(table, 0, 3) == ((0,),)
    assert blocks.grow(table, 3, 4) == ((),)
    assert blocks.grow(table, 4, 13) == ((1, 2, 3),)
    assert table.rows == [[0, 1, 2, 3]]
    blocks.check_integrity()


def test_growing_beyond_the_pool_changes_nothing() -> None:
    blocks = make_blocks(num_blocks=3)
    table = blocks.open(no_hit(blocks))
    assert blocks.grow(table, 0, 8) == ((0, 1),)
    assert blocks.grow(table, 8, 17) is None
    assert table.rows == [[0, 1]]
    assert blocks.grow(table, 8, 12) == ((2,),)
    assert blocks.usage == 1.0


def test_hashes_chain_over_all_tokens_before_and_the_salt() -> None:
    first, second = hashes_of([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert len(first) == 16
    assert hashes_of([1, 2, 3, 4])[0] == first
    assert hashes_of([0, 2, 3, 4, 5, 6, 7, 8])[1] != second
    assert hashes_of([1, 2, 3, 4], salt="tenant")[0] != first
    assert hashes_of([1, 2, 3]) == []


def test_hashes_are_extended_where_they_stopped() -> None:
    token_ids = array("i", range(6))
    hashes: list[bytes] = []
    extend_block_hashes(hashes, token_ids, 4, "")
    assert len(hashes) == 1
    token_ids.extend(range(6, 12))
    extend_block_hashes(hashes, token_ids, 4, "")
    assert hashes == hashes_of(range(12))


def test_a_prefix_is_found_as_far_as_it_agrees() -> None:
    blocks = make_blocks()
    compute(blocks, range(12))
    assert blocks.find_prefix(hashes_of([*range(8), 99, 99, 99, 99]), 100) == PrefixHit(8, ((0, 1),))
    assert blocks.find_prefix(hashes_of(range(12)), 100) == PrefixHit(12, ((0, 1, 2),))
    assert blocks.find_prefix(hashes_of(range(12)), 11) == PrefixHit(8, ((0, 1),))
    assert blocks.find_prefix(hashes_of(range(12), salt="other"), 100) == PrefixHit(0, ((),))


def test_only_what_was_computed_is_found() -> None:
    blocks = make_blocks()
    table = blocks.open(no_hit(blocks))
    blocks.grow(table, 0, 12)
    assert blocks.find_prefix(hashes_of(range(12)), 100).num_tokens == 0
    blocks.register(table, hashes_of(range(12)), 2)
    assert blocks.find_prefix(hashes_of(range(12)), 100).num_tokens == 8


def test_a_hit_shares_blocks_and_they_survive_their_first_owner() -> None:
    blocks = make_blocks()
    first = compute(blocks, range(8))
    second = blocks.open(blocks.find_prefix(hashes_of(range(8)), 100))
    assert second.rows == [[0, 1]]
    blocks.close(first)
    blocks.check_integrity()
    assert blocks.pool.num_owned == 2
    blocks.close(second)
    assert (blocks.pool.num_owned, blocks.pool.num_cached, blocks.pool.num_free) == (0, 2, 18)


def test_the_tail_of_a_cached_prefix_is_given_up_first() -> None:
    blocks = make_blocks(num_blocks=3)
    blocks.close(compute(blocks, range(12)))
    other = blocks.open(no_hit(blocks))
    assert blocks.grow(other, 0, 4) == ((2,),)
    assert blocks.find_prefix(hashes_of(range(12)), 100) == PrefixHit(8, ((0, 1),))


def test_room_is_counted_without_what_a_hit_takes_from_the_cache() -> None:
    blocks = make_blocks(num_blocks=4)
    blocks.close(compute(blocks, range(8)))
    hit = blocks.find_prefix(hashes_of(range(8)), 100)
    assert blocks.can_start(16, hit)
    assert not blocks.can_start(17, hit)
    owner = blocks.open(hit)
    assert blocks.can_start(16, hit), "shared with a running request, they cost nothing"
    blocks.grow(owner, 8, 12)
    assert not blocks.can_start(16, hit)


def test_a_window_gives_back_what_no_query_can_see() -> None:
    blocks = make_blocks(windows=(5,))
    table = blocks.open(no_hit(blocks))
    blocks.grow(table, 0, 8)
    assert blocks.grow(table, 8, 9) == ((0,),), "the query at 8 sees 4 .. 8; what went is used again at once"
    assert table.rows == [[None, 1, 0]]
    assert blocks.grow(table, 12, 13) == ((1,),), "the query at 12 sees 8 .. 12"
    assert table.rows == [[None, None, 0, 1]]
    blocks.check_integrity()
    blocks.close(table)
    blocks.check_idle()


def test_a_window_alone_can_hit_without_the_start() -> None:
    blocks = make_blocks(windows=(5,))
    table = compute(blocks, range(16))
    assert table.rows == [[None, 1, 2, 3]], "the last step began at 8 and saw 4 .. 8"
    blocks.close(table)
    blocks.pool.allocate(16 + 1)  # uses up what is free, and the start of the prefix
    hit = blocks.find_prefix(hashes_of(range(16)), 100)
    assert hit == PrefixHit(16, ((None, None, None, 3),)), "the query at 16 sees 12 .. 16"
    table = blocks.open(hit)
    assert blocks.grow(table, 16, 17) is not None
    assert table.rows[0][:4] == [None, None, None, 3]
    blocks.register(table, hashes_of(range(17)), 4)


def test_a_hit_must_be_usable_in_every_group() -> None:
    blocks = make_blocks(num_blocks=12, windows=(None, 5))
    table = compute(blocks, range(16))
    assert table.rows == [[0, 1, 4, 5], [None, 3, 6, 7]]
    assert blocks.find_prefix(hashes_of(range(16)), 100) == PrefixHit(16, ((0, 1, 4, 5), (None, None, None, 7)))
    assert blocks.find_prefix(hashes_of(range(8)), 100) == PrefixHit(8, ((0, 1), (None, 3)))
    assert blocks.find_prefix(hashes_of(range(4)), 100) == PrefixHit(4, ((0,), (2,))), "block 2 is cached, not owned"
    blocks.close(table)
    blocks.pool.allocate(4 + 1)
    assert blocks.pool.find((1, hashes_of(range(4))[0])) is None, "it was freed first, so it went first"
    assert blocks.find_prefix(hashes_of(range(4)), 100).num_tokens == 0
    assert blocks.find_prefix(hashes_of(range(8)), 100).num_tokens == 8


def test_groups_never_mistake_each_others_blocks() -> None:
    blocks = make_blocks(windows=(None, None))
    table = blocks.open(no_hit(blocks))
    assert blocks.grow(table, 0, 8) == ((0, 1), (2, 3))
    blocks.register(table, hashes_of(range(8)), 2)
    assert blocks.find_prefix(hashes_of(range(8)), 100) == PrefixHit(8, ((0, 1), (2, 3)))


@pytest.mark.parametrize(
    ("windows", "num_tokens", "num_blocks"),
    [((None,), 16, 4), ((None,), 17, 5), ((5,), 8, 2), ((5,), 1000, 4), ((None, 5), 1000, 254)],
)
def test_the_most_a_request_can_need_at_once(windows: tuple[int | None, ...], num_tokens: int, num_blocks: int) -> None:
    assert make_blocks(windows=windows).num_blocks_for(num_tokens) == num_blocks


def test_a_window_group_never_needs_more_than_was_counted() -> None:
    blocks = make_blocks(num_blocks=4, windows=(5,))
    table = blocks.open(no_hit(blocks))
    for start in range(3, 400, 8):
        assert blocks.grow(table, start, start + 8) is not None


def test_nothing_is_found_with_the_prefix_cache_off() -> None:
    blocks = KVBlocks(num_blocks=4, block_size=4, max_step_tokens=8, caches_prefixes=False)
    compute(blocks, range(8))
    assert blocks.find_prefix(hashes_of(range(8)), 100).num_tokens == 0


def test_a_leaked_block_is_noticed_when_idle_and_in_the_audit() -> None:
    blocks = make_blocks()
    blocks.pool.allocate(1)
    with pytest.raises(IntegrityError, match="1 blocks are owned and no request runs"):
        blocks.check_idle()
    with pytest.raises(IntegrityError, match="0: 1 counted, 0 in tables"):
        blocks.check_integrity()


def test_a_block_more_for_each_of_several_requests() -> None:
    blocks = make_blocks(num_blocks=10, windows=(None, 5))
    tables = [blocks.open(no_hit(blocks)) for _ in range(2)]
    for table in tables:
        assert blocks.grow(table, 0, 8) is not None
    assert blocks.append_each(tables, [8, 8]) == [[6, 2], [8, 9]], "what has left the windows is used again"
    assert [table.rows for table in tables] == [[[0, 1, 6], [None, 3, 8]], [[4, 5, 2], [None, 7, 9]]]
    blocks.check_integrity()
    assert blocks.append_each(tables, [12, 12]) is None
    assert [len(table.rows[0]) for table in tables] == [3, 3]
    blocks.check_integrity()

"""Who owns which block, spelled out."""

from __future__ import annotations

import pytest

from penstock.engine.block_pool import BlockPool
from penstock.engine.errors import IntegrityError


def key(name: str, group: int = 0) -> tuple[int, bytes]:
    return (group, name.encode())


def test_free_blocks_come_in_order_and_the_last_freed_first() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    pool.release([0])
    pool.release([2])
    assert pool.allocate(3) == [2, 0, 3]
    assert (pool.num_free, pool.num_cached, pool.num_owned) == (0, 0, 4)


def test_registered_blocks_stay_findable_after_their_owner() -> None:
    pool = BlockPool(3)
    pool.allocate(2)
    pool.register(0, [0], [key("a")[1]])
    pool.release([0])
    pool.release([1])
    assert (pool.num_free, pool.num_cached, pool.num_owned) == (2, 1, 0)
    assert pool.find(key("a")) == 0
    assert pool.find(key("a", group=1)) is None
    pool.share(0)
    assert pool.is_owned(0)
    pool.check_integrity([[0]])


def test_cached_blocks_are_given_up_after_free_ones_and_least_recently_freed_first() -> None:
    pool = BlockPool(3)
    pool.allocate(3)
    for block_id, name in enumerate("ab"):
        pool.register(0, [block_id], [key(name)[1]])
    for block_id in (2, 1, 0):
        pool.release([block_id])
    assert pool.allocate(1) == [2]
    assert pool.find(key("b")) == 1
    assert pool.allocate(1) == [1]
    assert pool.find(key("b")) is None
    assert pool.find(key("a")) == 0


def test_a_block_goes_back_only_when_its_last_owner_has_left() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    pool.register(0, [0], [key("a")[1]])
    pool.share(0)
    pool.release([0])
    assert pool.is_owned(0)
    assert pool.num_available == 1
    pool.release([0])
    assert pool.num_available == 2
    pool.check_integrity([])


def test_of_two_blocks_with_the_same_content_the_first_is_found() -> None:
    pool = BlockPool(2)
    pool.allocate(2)
    pool.register(0, [0], [key("a")[1]])
    pool.register(0, [1], [key("a")[1]])
    assert pool.find(key("a")) == 0
    pool.release([1])
    assert (pool.num_free, pool.num_cached) == (1, 0)


def test_the_audit_names_blocks_whose_owners_do_not_fit() -> None:
    pool = BlockPool(3)
    pool.allocate(2)
    pool.check_integrity([[0], [1]])
    with pytest.raises(IntegrityError, match=r"owners of 1 blocks differ \(1: 1 counted, 0 in tables\)"):
        pool.check_integrity([[0]])


def test_the_audit_notices_a_lost_block() -> None:
    pool = BlockPool(3)
    pool._free.pop()
    with pytest.raises(IntegrityError, match="2 free \\+ 0 cached \\+ 0 owned are 2 blocks and not 3"):
        pool.check_counts()


def test_the_audit_notices_an_index_that_contradicts_itself() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    pool.register(0, [0], [key("a")[1]])
    del pool._block_of[key("a")]
    with pytest.raises(IntegrityError, match="index"):
        pool.check_integrity([[0]])


def test_forgotten_content_is_found_no_more_and_owners_keep_their_blocks() -> None:
    pool = BlockPool(3)
    pool.allocate(2)
    for block_id, name in enumerate("ab"):
        pool.register(0, [block_id], [key(name)[1]])
    pool.release([0])
    pool.forget_content()
    assert pool.find(key("a")) is None
    assert pool.find(key("b")) is None
    assert (pool.num_free, pool.num_cached, pool.num_owned) == (2, 0, 1)
    pool.check_integrity([[1]])
    pool.release([1])
    pool.check_integrity([])

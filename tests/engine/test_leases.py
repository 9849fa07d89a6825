"""Who the engine works for, and how long."""

from __future__ import annotations

from penstock.engine.leases import MAX_DORMANT, MAX_TOMBSTONES, Lease, Leases
from penstock.ipc.messages import LEASE_TIMEOUT_S


def greeted(leases: Leases, identity: bytes = b"a", now_s: float = 0.0) -> Lease:
    leases.greet(identity, now_s)
    lease = leases.get(identity)
    assert lease is not None
    return lease


def test_who_never_said_hello_has_no_lease() -> None:
    leases = Leases(b"boot")
    assert leases.hear(b"a", 0.0) is None
    assert len(leases) == 0


def test_hello_again_keeps_the_lease() -> None:
    leases = Leases(b"boot")
    lease = greeted(leases)
    lease.open_requests.add(1)
    assert greeted(leases, now_s=1.0) is lease


def test_a_lease_is_silent_after_its_time_and_not_twice() -> None:
    leases = Leases(b"boot")
    lease = greeted(leases)
    assert leases.silent(LEASE_TIMEOUT_S) == []
    assert leases.silent(LEASE_TIMEOUT_S + 0.1) == [lease]
    lease.is_ending = True
    assert leases.silent(LEASE_TIMEOUT_S + 0.1) == []


def test_a_paused_frontend_comes_back_with_any_message() -> None:
    leases = Leases(b"boot")
    lease = greeted(leases)
    lease.remember_abort(7)
    lease.is_ending = True
    leases.end(lease)
    assert len(leases) == 0
    assert leases.hear(b"a", 9.0) is lease
    assert not lease.is_ending
    assert 7 in lease.tombstones
    assert list(leases) == [lease]


def test_goodbye_is_for_good() -> None:
    leases = Leases(b"boot")
    lease = greeted(leases)
    lease.has_left = True
    assert leases.hear(b"a", 1.0) is None, "before its end"
    leases.end(lease)
    assert leases.hear(b"a", 2.0) is None, "and after"


def test_memory_is_bounded() -> None:
    leases = Leases(b"boot")
    for number in range(MAX_DORMANT + 10):
        leases.end(greeted(leases, b"%d" % number))
    assert leases.hear(b"9", 1.0) is None
    lease = leases.hear(b"10", 1.0)
    assert lease is not None
    for request_id in range(MAX_TOMBSTONES + 5):
        lease.remember_abort(request_id)
    assert len(lease.tombstones) == MAX_TOMBSTONES
    assert 4 not in lease.tombstones
    assert 5 in lease.tombstones

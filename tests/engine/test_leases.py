"""Who the engine works for, and how long."""

from __future__ import annotations

import dataclasses

import numpy as np

from penstock.engine.leases import MAX_DORMANT, MAX_TOMBSTONES, Lease, Leases
from penstock.engine.outputs import PlainTokens, RequestOutput, StepOutputs
from penstock.ipc.messages import LEASE_TIMEOUT_S, FinishReason, Outputs, ToFrontend


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


def test_each_lease_gets_what_its_requests_have_said() -> None:
    leases = Leases(b"boot")
    first, second = greeted(leases, b"a"), greeted(leases, b"b")
    first.open_requests |= {1, 2}
    second.open_requests |= {1, 2**31 - 1}
    handles = np.array([second.handle(1), first.handle(2), second.handle(2**31 - 1)])
    plain = PlainTokens(
        handles=handles,
        positions=np.array([4, 5, 6], np.int32),
        token_ids=np.array([[10, 20, 30], [11, 21, 31]], np.int32),
        slots=np.zeros(3, np.int64),
    )
    end = RequestOutput(
        key=0, handle=first.handle(1), position=9, token_ids=[99], finish_reason=FinishReason.STOP, stop_token_id=99
    )
    leases.deliver(StepOutputs([end], plain))
    leases.deliver(StepOutputs([], dataclasses.replace(plain, positions=plain.positions + 2, token_ids=plain.token_ids + 2)))
    leases.deliver(StepOutputs())
    assert first.open_requests == {2}
    sent: dict[bytes, list[ToFrontend]] = {b"a": [], b"b": []}
    for lease in leases:
        lease.outbox.flush(sent[lease.identity].append, 0.0, at_once=True)
    (to_first,), (to_second,) = sent[b"a"], sent[b"b"]
    assert isinstance(to_first, Outputs)
    assert isinstance(to_second, Outputs)
    assert memoryview(to_first.request_ids).cast("i").tolist() == [1, 2]
    assert to_first.finish_reasons == bytes([FinishReason.STOP, 0])
    assert [(detail.request_id, detail.stop_token_id) for detail in to_first.details] == [(1, 99)]
    assert memoryview(to_second.request_ids).cast("i").tolist() == [1, 2**31 - 1]
    assert memoryview(to_second.token_ids).cast("i").tolist() == [10, 11, 12, 13, 30, 31, 32, 33]
    assert memoryview(to_second.positions).cast("i").tolist() == [4, 6]

"""What is sent to a frontend, and when."""

from __future__ import annotations

from array import array

import pytest

from penstock.engine import outbox as outbox_module
from penstock.engine.outbox import FLUSH_INTERVAL_S, RETRY_INTERVAL_S, Outbox, pack_logprobs
from penstock.engine.outputs import RequestOutput
from penstock.engine.plan import PositionLogprobs
from penstock.ipc.messages import FinishReason, Outputs, Rejected, RejectReason, ToFrontend
from penstock.ipc.sockets import GonePeer, SlowPeer

Told = list[tuple[int, int, list[int], int]]
"""(request, position, tokens, finish reason) per entry of a message."""


def output(
    position: int,
    token_ids: list[int],
    *,
    finish: FinishReason | None = None,
    is_first: bool = False,
    logprobs: PositionLogprobs | None = None,
) -> RequestOutput:
    return RequestOutput(
        key="key",
        position=position,
        token_ids=token_ids,
        finish_reason=finish,
        num_cached_tokens=3 if is_first else None,
        logprobs=logprobs,
    )


def read(message: ToFrontend) -> Told:
    assert isinstance(message, Outputs)
    request_ids, positions, counts, tokens = (
        memoryview(data).cast("i").tolist()
        for data in (message.request_ids, message.positions, message.counts, message.token_ids)
    )
    told, start = [], 0
    for request_id, position, count, finish in zip(request_ids, positions, counts, message.finish_reasons, strict=True):
        told.append((request_id, position, tokens[start : start + count], finish))
        start += count
    assert start == len(tokens)
    return told


class Peer:
    """A frontend's end that can be slow or gone."""

    def __init__(self) -> None:
        self.received: list[ToFrontend] = []
        self.error: Exception | None = None

    def send(self, message: ToFrontend) -> None:
        if self.error is not None:
            raise self.error
        self.received.append(message)

    def told(self) -> list[Told]:
        return [read(message) for message in self.received]


def test_tokens_of_all_requests_travel_in_one_message() -> None:
    outbox, peer = Outbox(b"boot"), Peer()
    outbox.add([(1, output(0, [7], is_first=True)), (2, output(4, [8, 9]))])
    outbox.flush(peer.send, 0.0, at_once=False)
    assert peer.told() == [[(1, 0, [7], 0), (2, 4, [8, 9], 0)]]
    (message,) = peer.received
    assert isinstance(message, Outputs)
    assert message.engine_boot_id == b"boot"
    assert [(detail.request_id, detail.num_cached_tokens) for detail in message.details] == [(1, 3)]
    assert outbox.is_empty


def test_tokens_in_between_wait_for_each_other_and_first_and_last_do_not() -> None:
    outbox, peer = Outbox(b"boot"), Peer()
    outbox.add([(1, output(0, [7], is_first=True))])
    outbox.flush(peer.send, 0.0, at_once=False)
    outbox.add([(1, output(1, [8]))])
    outbox.flush(peer.send, FLUSH_INTERVAL_S / 2, at_once=False)
    assert len(peer.received) == 1
    outbox.add([(1, output(2, [9]))])
    outbox.flush(peer.send, FLUSH_INTERVAL_S, at_once=False)
    assert peer.told()[1:] == [[(1, 1, [8, 9], 0)]]
    outbox.add([(1, output(3, [10], finish=FinishReason.STOP))])
    outbox.flush(peer.send, FLUSH_INTERVAL_S, at_once=False)
    assert peer.told()[2:] == [[(1, 3, [10], FinishReason.STOP)]]


def test_an_engine_that_falls_idle_keeps_nothing_back() -> None:
    outbox, peer = Outbox(b"boot"), Peer()
    outbox.add([(1, output(0, [7], is_first=True))])
    outbox.flush(peer.send, 0.0, at_once=False)
    outbox.add([(1, output(1, [8]))])
    outbox.flush(peer.send, 0.0, at_once=True)
    assert outbox.is_empty


def test_a_slow_frontend_gets_everything_joined_later() -> None:
    outbox, peer = Outbox(b"boot"), Peer()
    peer.error = SlowPeer()
    outbox.reject(Rejected(5, RejectReason.INVALID, "no", None))
    for position in range(100):
        outbox.add([(1, output(position, [position], is_first=position == 0))])
        outbox.flush(peer.send, 0.0, at_once=True)
    peer.error = None
    outbox.flush(peer.send, RETRY_INTERVAL_S / 2, at_once=True)
    assert peer.received == [], "not at every step"
    outbox.flush(peer.send, RETRY_INTERVAL_S, at_once=False)
    assert peer.received[0] == Rejected(5, RejectReason.INVALID, "no", None)
    assert read(peer.received[1]) == [(1, 0, list(range(100)), 0)]
    assert outbox.is_empty


def test_a_frontend_that_is_gone_is_reported() -> None:
    outbox, peer = Outbox(b"boot"), Peer()
    peer.error = GonePeer()
    outbox.add([(1, output(0, [1], is_first=True))])
    with pytest.raises(GonePeer):
        outbox.flush(peer.send, 0.0, at_once=True)


def test_joined_logprobs_stay_one_row_a_token() -> None:
    outbox, peer = Outbox(b"boot"), Peer()
    for position in range(2):
        row = PositionLogprobs(token_ids=[[position, 5]], logprobs=[[-1.5, -0.25]], ranks=[position + 1])
        outbox.add([(1, output(position, [position], logprobs=row))])
    outbox.flush(peer.send, 0.0, at_once=True)
    (message,) = peer.received
    assert isinstance(message, Outputs)
    logprobs = message.details[0].logprobs
    assert logprobs is not None
    assert logprobs.num_columns == 2
    assert memoryview(logprobs.token_ids).cast("i").tolist() == [0, 5, 1, 5]
    assert memoryview(logprobs.logprobs).cast("f").tolist() == [-1.5, -0.25, -1.5, -0.25]
    assert memoryview(logprobs.ranks).cast("i").tolist() == [1, 2]


def test_no_positions_make_empty_arrays() -> None:
    packed = pack_logprobs([PositionLogprobs(token_ids=[], logprobs=[], ranks=[])])
    assert (packed.token_ids, packed.logprobs, packed.ranks, packed.num_columns) == (b"", b"", b"", 1)


def test_what_is_too_much_for_one_message_is_divided_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MESSAGE_BYTES", 100)
    outbox, peer = Outbox(b"boot"), Peer()
    for request_id in range(1, 5):
        outbox.add([(request_id, output(0, array("i", range(20)).tolist(), is_first=True))])
    outbox.flush(peer.send, 0.0, at_once=True)
    assert [[entry[0] for entry in told] for told in peer.told()] == [[1, 2], [3, 4]]

"""The engine behind real sockets: what frontends, and things that are none, can do to it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from penstock.engine import server as server_module
from penstock.engine.leases import MAX_TOMBSTONES
from penstock.engine.plan import PendingStep, StepPlan
from penstock.engine.toy_config import ToyConfig, expected_tokens
from penstock.ipc.codec import encode
from penstock.ipc.messages import (
    LEASE_TIMEOUT_S,
    PROTOCOL_VERSION,
    Abort,
    EngineHeartbeat,
    FinishReason,
    Goodbye,
    Heartbeat,
    Hello,
    Ready,
    RejectReason,
    Stats,
)
from tests.engine.raw_frontend import FACTS, RawFrontend, Served, serving
from tests.engine.toy_engine import make_core

TOY = ToyConfig(vocab_size=512)
SLOW = ToyConfig(vocab_size=512, step_time_s=0.01)


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(make_core(TOY)) as running:
        yield running


@pytest.fixture
def slow() -> Iterator[Served]:
    """Steps of 10 ms: long enough to get a word in between."""
    with serving(make_core(SLOW)) as running:
        yield running


@pytest.fixture
def frontend(served: Served) -> Iterator[RawFrontend]:
    with RawFrontend(served.socket_dir) as raw:
        raw.greet()
        yield raw


@pytest.fixture
def patient(slow: Served) -> Iterator[RawFrontend]:
    """A frontend of the slow server."""
    with RawFrontend(slow.socket_dir) as raw:
        raw.greet()
        yield raw


def test_hello_is_answered_with_the_facts(served: Served) -> None:
    with RawFrontend(served.socket_dir) as frontend:
        ready = frontend.greet()
        assert ready == FACTS.ready(ready.engine_boot_id)
        assert len(ready.engine_boot_id) == 8
        assert frontend.greet().engine_boot_id == ready.engine_boot_id


def test_a_request_streams_its_tokens(frontend: RawFrontend) -> None:
    frontend.submit(1, [1, 2, 3], 20)
    frontend.wait_for(1)
    answer = frontend.answers[1]
    assert answer.token_ids == expected_tokens([1, 2, 3], 20, TOY)
    assert answer.finish_reason is FinishReason.LENGTH
    assert [detail.num_cached_tokens for detail in answer.details] == [0]


def test_two_frontends_use_the_same_ids_and_get_their_own_tokens(served: Served, frontend: RawFrontend) -> None:
    with RawFrontend(served.socket_dir, b"frontend:00000002") as other:
        other.greet()
        for request_id in range(1, 21):
            frontend.submit(request_id, [request_id, 1], 15)
            other.submit(request_id, [request_id, 2], 15)
        for tail, one in ((1, frontend), (2, other)):
            one.wait_for(*range(1, 21))
            for request_id in range(1, 21):
                assert one.answers[request_id].token_ids == expected_tokens([request_id, tail], 15, TOY)


def test_a_refusal_names_the_field(frontend: RawFrontend) -> None:
    frontend.submit(1, [1], temperature=float("nan"))
    frontend.submit(2, [9999])
    frontend.submit(3, [1] * 500)
    frontend.wait_for(1, 2, 3)
    told = {i: (RejectReason(rejected.reason), rejected.param) for i, rejected in frontend.rejected.items()}
    assert told == {
        1: (RejectReason.INVALID, "temperature"),
        2: (RejectReason.INVALID, "prompt"),
        3: (RejectReason.TOO_LONG, "prompt"),
    }
    assert frontend.stat("requests_rejected", reason="invalid") == 2


def test_an_abort_ends_a_running_request(patient: RawFrontend) -> None:
    patient.submit(1, [1, 2], 150)
    patient.wait_until_stat("num_requests_running", 1)
    patient.abort(1)
    patient.wait_for(1)
    answer = patient.answers[1]
    assert answer.finish_reason is FinishReason.ABORT
    assert answer.token_ids == expected_tokens([1, 2], len(answer.token_ids), TOY)
    assert patient.stat("kv_blocks", state="owned") == 0


def test_an_abort_that_overtakes_its_submit_is_remembered(frontend: RawFrontend) -> None:
    frontend.abort(5, 6)
    frontend.stats()
    frontend.submit(5, [1])
    frontend.submit(7, [1])
    frontend.wait_for(5, 7)
    assert frontend.rejected[5].reason == RejectReason.ABORTED
    assert frontend.answers[7].finish_reason is FinishReason.LENGTH


def test_a_flood_of_aborts_is_not_remembered_for_ever(served: Served, frontend: RawFrontend) -> None:
    frontend.abort(*range(1, 3 * MAX_TOMBSTONES))
    frontend.stats()
    (lease,) = list(served.server._leases)
    assert len(lease.tombstones) == MAX_TOMBSTONES


def test_a_silent_frontend_loses_its_requests_and_others_do_not(slow: Served, patient: RawFrontend) -> None:
    with RawFrontend(slow.socket_dir, b"frontend:00000002") as other:
        other.greet()
        patient.submit(1, [1, 2], 150)
        patient.wait_until_stat("num_requests_running", 1)
        slow.clock.ahead_s += LEASE_TIMEOUT_S + 1
        other.say(Heartbeat({}, {}))
        other.wait_until_stat("num_requests_running", 0)
        assert other.stat("kv_blocks", state="owned") == 0
        assert other.stat("request_success", finished_reason="abort") == 1
        patient.wait_for(1)
        assert patient.answers[1].finish_reason is FinishReason.ABORT, "if it can still hear, it is told"


def test_a_frontend_that_was_only_paused_goes_on_without_another_hello(slow: Served, patient: RawFrontend) -> None:
    slow.clock.ahead_s += LEASE_TIMEOUT_S + 1
    deadline_s = time.monotonic() + 5
    while len(slow.server._leases) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert len(slow.server._leases) == 0
    patient.submit(1, [1], 2)
    patient.wait_for(1)
    assert patient.answers[1].finish_reason is FinishReason.LENGTH


def test_goodbye_ends_a_lease_at_once(slow: Served, patient: RawFrontend) -> None:
    with RawFrontend(slow.socket_dir, b"frontend:00000002") as other:
        other.greet()
        patient.say(Heartbeat({"/health 200": 3}, {"encoded": 5, "reused": 70}))
        patient.submit(1, [1], 150)
        other.wait_until_stat("num_requests_running", 1)
        patient.say(Goodbye())
        other.wait_until_stat("num_requests_running", 0)
        assert other.stat("http_responses", route="/health", status="200") == 3
        assert other.stat("tokenized_prompt_tokens", source="reused") == 70
        deadline_s = time.monotonic() + 2
        while len(slow.server._leases) > 1:  # it ends with the reply that follows its requests' end
            assert time.monotonic() < deadline_s


def test_a_frontend_whose_sockets_close_is_given_up_without_waiting(slow: Served, patient: RawFrontend) -> None:
    with RawFrontend(slow.socket_dir, b"frontend:00000002") as dying:
        dying.greet()
        dying.submit(1, [1], 190)
        patient.wait_until_stat("num_requests_running", 1)
    patient.wait_until_stat("num_requests_running", 0, timeout_s=LEASE_TIMEOUT_S / 2)


def test_a_submit_without_hello_is_refused(served: Served) -> None:
    with RawFrontend(served.socket_dir) as stranger:
        stranger.submit(1, [1])
        stranger.wait_for(1)
        assert "Hello" in stranger.rejected[1].message
        stranger.say(Heartbeat({}, {}))
        stranger.abort(1)
        assert stranger.stat("requests_admitted") == 0


def test_another_protocol_version_is_told_ours_and_gets_no_lease(served: Served) -> None:
    with RawFrontend(served.socket_dir) as stranger:
        stranger.say(Hello(PROTOCOL_VERSION + 1))
        assert stranger.hear(Ready).protocol_version == PROTOCOL_VERSION
        assert len(served.server._leases) == 0


def test_heartbeats_come_each_second_and_tell_how_it_goes(patient: RawFrontend) -> None:
    patient.submit(1, [1], 150)
    patient.wait_until_stat("num_requests_running", 1)
    beat = patient.hear(EngineHeartbeat, timeout_s=1.5)
    assert beat.num_running == 1
    assert beat.step_age_s < 0.5
    assert 0 < beat.kv_usage < 1
    patient.abort(1)


def test_garbage_is_counted_and_ignored(served: Served, frontend: RawFrontend) -> None:
    dice = random.Random(3)
    good = encode(Hello(PROTOCOL_VERSION))
    for socket in (frontend.data, frontend.control):
        for _ in range(300):
            socket.send(dice.randbytes(dice.randrange(60)))
            socket.send(good[: dice.randrange(len(good))])
        socket.send_multipart([b"several", b"frames", b""])
        socket.send(b"")
        socket.send(os.urandom(1 << 20))
    frontend.control.send(encode(Hello(PROTOCOL_VERSION)))
    frontend.data.send(encode(Abort(b"\1\0\0\0")))
    frontend.control.send(encode(Abort(b"\1\0\0")))
    frontend.submit(-5, [1])
    frontend.submit(1, [1, 2], 5)
    frontend.wait_for(1)
    assert frontend.answers[1].token_ids == expected_tokens([1, 2], 5, TOY)
    assert frontend.stat("ignored_frames") > 1000
    assert served.thread.is_alive()


def test_an_id_that_is_open_cannot_be_submitted_again(patient: RawFrontend) -> None:
    patient.submit(1, [1, 2], 10)
    patient.submit(1, [3, 4], 10)
    patient.wait_for(1)
    assert patient.answers[1].token_ids == expected_tokens([1, 2], 10, TOY)
    assert patient.stat("requests_admitted") == 1


def test_a_frontend_that_does_not_read_keeps_nobody_waiting_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, served: Served, frontend: RawFrontend
) -> None:
    monkeypatch.setattr("penstock.engine.outbox.FLUSH_INTERVAL_S", 0.0)
    with RawFrontend(served.socket_dir, b"frontend:00000002") as quick:
        quick.greet()
        num_requests = 120
        for request_id in range(1, num_requests + 1):
            frontend.submit(request_id, [request_id], 150)
        for request_id in range(1, 30):
            quick.submit(request_id, [request_id, 2], 20)
            quick.wait_for(request_id)
        quick.wait_until_stat("num_requests_running", 0, timeout_s=30)
        # More messages were due than both queues hold: the rest was joined, and comes when it is read.
        frontend.wait_for(*range(1, num_requests + 1), timeout_s=30)
        for request_id in range(1, num_requests + 1):
            assert frontend.answers[request_id].token_ids == expected_tokens([request_id], 150, TOY)


def test_a_stop_lets_running_requests_finish_and_refuses_new_ones(slow: Served, patient: RawFrontend) -> None:
    patient.submit(1, [1], 60)
    patient.wait_until_stat("num_requests_running", 1)
    slow.server.stop()
    patient.submit(2, [1], 5)
    patient.wait_for(1, 2)
    assert patient.answers[1].token_ids == expected_tokens([1], 60, TOY)
    assert patient.rejected[2].reason == RejectReason.DRAINING
    slow.stop()
    slow.server.stop()  # a signal that comes when all is done


def test_a_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, slow: Served, patient: RawFrontend) -> None:
    monkeypatch.setattr(server_module, "DRAIN_TIMEOUT_S", 0.1)
    patient.submit(1, [1], 190)
    patient.wait_until_stat("num_requests_running", 1)
    slow.server.stop()
    patient.wait_for(1)
    assert patient.answers[1].finish_reason is FinishReason.ABORT
    slow.stop()


def test_an_idle_engine_sleeps(served: Served, frontend: RawFrontend) -> None:
    frontend.submit(1, [1], 5)
    frontend.wait_for(1)
    time.sleep(0.1)
    before_s = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before_s < 0.05
    begin_s = time.monotonic()
    served.stop()
    assert time.monotonic() - begin_s < 0.8, "a stop wakes it"


def test_a_failed_step_is_told_as_an_error(monkeypatch: pytest.MonkeyPatch, served: Served, frontend: RawFrontend) -> None:
    runner = served.core.runner
    launch = runner.launch

    def fail_once(plan: StepPlan) -> PendingStep:
        monkeypatch.setattr(runner, "launch", launch)
        raise MemoryError("too much")

    monkeypatch.setattr(runner, "launch", fail_once)
    frontend.submit(1, [1], 5)
    frontend.wait_for(1)
    assert frontend.answers[1].finish_reason is FinishReason.ERROR
    assert [detail.error for detail in frontend.answers[1].details] == ["MemoryError: too much"]
    frontend.submit(2, [1], 5)
    frontend.wait_for(2)
    assert frontend.answers[2].token_ids == expected_tokens([1], 5, TOY)


def test_stats_repeat_the_nonce(frontend: RawFrontend) -> None:
    assert frontend.stats().nonce == 1
    assert isinstance(frontend.stats(), Stats)

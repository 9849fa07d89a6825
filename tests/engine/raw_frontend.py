"""An EngineServer in a thread, and frontends that speak to it with bare DEALER sockets."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import zmq

from penstock.engine.core import EngineCore
from penstock.engine.facts import ModelFacts
from penstock.engine.server import EngineServer
from penstock.ipc.codec import decode, encode
from penstock.ipc.messages import (
    PROTOCOL_VERSION,
    Abort,
    Detail,
    FinishReason,
    Heartbeat,
    Hello,
    Outputs,
    Ready,
    Rejected,
    Sampling,
    Stats,
    StatsRequest,
    Submit,
    ToEngine,
)

Message = TypeVar("Message")
FACTS = ModelFacts(
    model_dir="/nowhere",
    served_model_names=("toy",),
    max_model_len=200,
    vocab_size=512,
    eos_token_ids=(),
    generation_defaults={},
    block_size=4,
    num_blocks=100,
    max_num_seqs=8,
    dtype="int32",
    device="cpu",
    created_s=0,
)


class Clock:
    """Real time, and as much more as a test wants."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@dataclass
class Served:
    """A server that runs in `thread`."""

    server: EngineServer
    core: EngineCore
    clock: Clock
    socket_dir: Path
    thread: threading.Thread
    errors: list[BaseException]

    def stop(self, timeout_s: float = 5.0) -> None:
        """Drains the server and waits for its end."""
        if self.thread.is_alive():
            self.server.stop()
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the server does not end"


@contextlib.contextmanager
def serving(core: EngineCore) -> Iterator[Served]:
    """Runs a server for the block; afterwards every KV block must be back, and nothing may have gone wrong in its thread."""
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        clock = Clock()
        server = EngineServer(core, FACTS, Path(directory), clock)
        errors: list[BaseException] = []

        def serve() -> None:
            try:
                server.serve()
            except BaseException as error:
                errors.append(error)

        served = Served(server, core, clock, Path(directory), threading.Thread(target=serve), errors)
        served.thread.start()
        try:
            yield served
        finally:
            served.stop()
        assert errors == []
        core.scheduler.check_integrity()
        assert core.scheduler.blocks.pool.num_owned == 0


@dataclass
class Answer:
    """What has come for one request."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    details: list[Detail] = field(default_factory=list)


class RawFrontend:
    """Both DEALERs of one frontend."""

    def __init__(self, socket_dir: Path, identity: bytes = b"frontend:00000001") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.data, self.control = (self._connect(socket_dir / pair, identity) for pair in ("data", "control"))
        self.answers: dict[int, Answer] = {}
        self.rejected: dict[int, Rejected] = {}

    def _connect(self, path: Path, identity: bytes) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, identity)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 10)
        socket.connect(f"ipc://{path}")
        return socket

    def __enter__(self) -> RawFrontend:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close(0)
        self.control.close(0)
        self._context.term()

    def say(self, message: ToEngine) -> None:
        """Sends on the pair where the message belongs."""
        (self.data if isinstance(message, Hello | Submit) else self.control).send(encode(message))

    def hear(self, kind: type[Message], timeout_s: float = 5.0) -> Message:
        """The next message of this kind; others on the same pair are taken note of or passed over."""
        socket = self.data if kind in (Ready, Outputs, Rejected) else self.control
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if socket.poll(int(left_s * 1000) + 1):
                message = decode(socket.recv())
                self._note(message)
                if isinstance(message, kind):
                    return message
        raise TimeoutError(f"no {kind.__name__}")

    def _note(self, message: object) -> None:
        if isinstance(message, Rejected):
            self.rejected[message.request_id] = message
        if not isinstance(message, Outputs):
            return
        request_ids, positions, counts, tokens = (
            memoryview(data).cast("i").tolist()
            for data in (message.request_ids, message.positions, message.counts, message.token_ids)
        )
        start = 0
        for request_id, position, num_tokens, reason in zip(
            request_ids, positions, counts, message.finish_reasons, strict=True
        ):
            answer = self.answers.setdefault(request_id, Answer())
            assert answer.finish_reason is None, "tokens after the end"
            assert position == len(answer.token_ids), "a gap"
            answer.token_ids += tokens[start : start + num_tokens]
            answer.finish_reason = FinishReason(reason) if reason else None
            answer.details += [detail for detail in message.details if detail.request_id == request_id]
            start += num_tokens

    def greet(self) -> Ready:
        """Hello and what comes back; a Heartbeat makes sure that the control pair stands too."""
        self.say(Hello(PROTOCOL_VERSION))
        ready = self.hear(Ready)
        self.say(Heartbeat({}, {}))
        self.stats()
        return ready

    def submit(self, request_id: int, prompt: Sequence[int], max_tokens: int = 8, **fields: Any) -> None:
        """A request."""
        sampling = Sampling(**{"seed": 0, "max_tokens": max_tokens, **fields})
        token_ids = array("i", prompt).tobytes()
        self.say(Submit(request_id=request_id, token_ids=token_ids, num_output_tokens=0, sampling=sampling))

    def abort(self, *request_ids: int) -> None:
        """Aborts requests."""
        self.say(Abort(array("i", request_ids).tobytes()))

    def wait_for(self, *request_ids: int, timeout_s: float = 10.0) -> None:
        """Reads until each of the requests has its terminal event."""
        deadline_s = time.monotonic() + timeout_s
        while not all(self.is_over(request_id) for request_id in request_ids):
            if self.data.poll(max(0, int((deadline_s - time.monotonic()) * 1000))):
                self._note(decode(self.data.recv()))
            elif time.monotonic() > deadline_s:
                raise TimeoutError(f"no end of {[i for i in request_ids if not self.is_over(i)]}")

    def is_over(self, request_id: int) -> bool:
        """Whether the terminal event has come."""
        answer = self.answers.get(request_id)
        return request_id in self.rejected or (answer is not None and answer.finish_reason is not None)

    def stats(self) -> Stats:
        """The server's figures at this moment."""
        self.say(StatsRequest(1))
        return self.hear(Stats)

    def stat(self, name: str, **labels: str) -> float:
        """One of them."""
        (family,) = [metric for metric in self.stats().metrics if metric.name == name]
        return sum(sample.value for sample in family.samples if labels.items() <= sample.labels.items())

    def wait_until_stat(self, name: str, wanted: float, timeout_s: float = 5.0, **labels: str) -> None:
        """Asks again and again."""
        deadline_s = time.monotonic() + timeout_s
        while (seen := self.stat(name, **labels)) != wanted:
            assert time.monotonic() < deadline_s, f"{name} is {seen} and not {wanted}"
            time.sleep(0.01)

"""An engine that does as a test tells it, over real sockets: for faults a real engine does not have.

It runs in a thread of its own. By default every Submit is answered with `reply`, a few tokens a message.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from penstock.ipc import messages
from penstock.ipc.codec import decode
from penstock.ipc.messages import (
    PROTOCOL_VERSION,
    Detail,
    EngineHeartbeat,
    FinishReason,
    Outputs,
    Ready,
    Rejected,
    RejectReason,
    Sample,
    Stats,
    Submit,
    TokenLogprobs,
)
from penstock.ipc.sockets import EngineSocket, GonePeer

Script = Callable[["FakeEngine", bytes, Submit], None]
"""What happens on a Submit from the frontend of this identity."""


class FakeEngine:
    """Use as a context manager. Everything that arrived is kept for the test to look at."""

    def __init__(self, socket_dir: Path, model_dir: Path, reply: list[int], **facts: Any) -> None:
        self.reply = reply
        self.finish = FinishReason.LENGTH
        self.tokens_per_message = 2
        self.delay_s = 0.0
        self.script: Script = answer
        self.is_silent = False
        self.submits: list[Submit] = []
        self.aborted_ids: list[int] = []
        self.num_hellos = 0
        self.goodbyes: list[bytes] = []
        self.http_responses: dict[str, int] = {}
        self.prompt_tokens: dict[str, int] = {}
        self.boot_id = os.urandom(8)
        self.stats: tuple[messages.Metric, ...] = (
            messages.Metric(name="num_requests_running", kind="gauge", help="h", samples=(Sample(labels={}, value=3.0),)),
        )
        self._socket_dir = socket_dir
        self._facts = {
            "model_dir": str(model_dir),
            "served_model_names": ("toy", "org/toy-alias"),
            "max_model_len": 256,
            "vocab_size": 300,
            "eos_token_ids": (),
            "generation_defaults": {},
            "block_size": 16,
            "num_blocks": 64,
            "max_num_seqs": 8,
            "dtype": "float32",
            "device": "cpu",
            "created_s": 1_700_000_000,
            **facts,
        }
        self._frontends: set[bytes] = set()
        self._errors: list[BaseException] = []

    def __enter__(self) -> FakeEngine:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        assert not self._errors, self._errors

    def start(self) -> None:
        """Begins to listen, as a process with `boot_id`."""
        self._stopping = threading.Event()
        self._frontends.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Ends like a killed process: nobody is told."""
        self._stopping.set()
        self._thread.join()

    def restart(self, **facts: Any) -> None:
        """Ends and begins again as another process."""
        self.stop()
        self._facts.update(facts)
        self.boot_id = os.urandom(8)
        self.start()

    def ready(self) -> Ready:
        """What this engine says of itself."""
        return Ready(protocol_version=PROTOCOL_VERSION, engine_boot_id=self.boot_id, **self._facts)

    def send(self, identity: bytes, message: messages.ToFrontend) -> None:
        """Sends on the data pair; only from a script, in the engine's thread."""
        try:
            self._data.send(identity, message)
        except GonePeer:
            self._frontends.discard(identity)

    def outputs(self, request_id: int, position: int, token_ids: list[int], finish: int = 0, **detail: Any) -> Outputs:
        """One request's tokens as a message."""
        return Outputs(
            engine_boot_id=self.boot_id,
            request_ids=_int32(request_id),
            positions=_int32(position),
            counts=_int32(len(token_ids)),
            token_ids=_int32(*token_ids),
            finish_reasons=bytes([finish]),
            details=(Detail(request_id=request_id, **detail),) if detail else (),
        )

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        for pair in ("data", "control"):
            (self._socket_dir / pair).unlink(missing_ok=True)
        self._data = EngineSocket(context, self._socket_dir, "data")
        self._control = EngineSocket(context, self._socket_dir, "control")
        poller = zmq.Poller()
        poller.register(self._data.socket, zmq.POLLIN)
        poller.register(self._control.socket, zmq.POLLIN)
        next_heartbeat_s = 0.0
        try:
            while not self._stopping.is_set():
                poller.poll(10)
                if self.is_silent:
                    time.sleep(0.01)
                    continue
                for socket in (self._control, self._data):
                    while (received := socket.receive_bytes()) is not None:
                        self._take(received[0], decode(received[1]))
                if time.monotonic() >= next_heartbeat_s:
                    next_heartbeat_s = time.monotonic() + 0.5
                    self._beat()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._data.close()
            self._control.close()
            context.term()

    def _take(self, identity: bytes, message: object) -> None:
        if isinstance(message, messages.Hello):
            self.num_hellos += 1
            self._frontends.add(identity)
            self.send(identity, self.ready())
        elif isinstance(message, Submit):
            self.submits.append(message)
            self.script(self, identity, message)
        elif isinstance(message, messages.Abort):
            self.aborted_ids.extend(array("i", message.request_ids))
        elif isinstance(message, messages.StatsRequest):
            self._control.send(identity, Stats(nonce=message.nonce, metrics=self.stats))
        elif isinstance(message, messages.Heartbeat):
            self.http_responses = message.http_responses
            self.prompt_tokens = message.prompt_tokens
        elif isinstance(message, messages.Goodbye):
            self.goodbyes.append(identity)

    def _beat(self) -> None:
        beat = EngineHeartbeat(engine_boot_id=self.boot_id, step_age_s=0.0, num_running=0, num_waiting=0, kv_usage=0.0)
        for identity in list(self._frontends):
            try:
                self._control.send(identity, beat)
            except GonePeer:
                self._frontends.discard(identity)


def answer(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
    """Sends the reply, as many tokens as were asked for, in messages of `tokens_per_message`."""
    token_ids = engine.reply[: submit.sampling.max_tokens]
    size = engine.tokens_per_message
    starts = range(0, len(token_ids), size) or [0]
    for start in starts:
        part = token_ids[start : start + size]
        is_last = start == starts[-1]
        details: dict[str, Any] = {"num_cached_tokens": 1} if start == 0 else {}
        if submit.sampling.logprobs is not None:
            details["logprobs"] = logprobs_of(part, submit.sampling.logprobs)
        if start == 0 and submit.sampling.prompt_logprobs is not None:
            prompt = array("i", submit.token_ids).tolist()
            details["prompt_logprobs"] = logprobs_of(prompt[1:], submit.sampling.prompt_logprobs)
        if is_last and engine.finish is FinishReason.STOP:
            details["stop_token_id"] = part[-1]
        finish = engine.finish if is_last else 0
        engine.send(identity, engine.outputs(submit.request_id, start, part, finish, **details))
        if engine.delay_s:
            time.sleep(engine.delay_s)


def never_finish(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
    """Two tokens, and nothing more."""
    engine.send(identity, engine.outputs(submit.request_id, 0, engine.reply[:2]))


def say_nothing(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
    """No answer at all."""


def reject(reason: RejectReason, message: str = "no", param: str | None = None) -> Script:
    """Refuses every request."""

    def script(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, Rejected(submit.request_id, reason, message, param))

    return script


def logprobs_of(token_ids: list[int], num_top: int) -> TokenLogprobs:
    """The token itself has -0.5, the top ones are ids 65, 66, ... with -1, -2, ..."""
    rows = [[token_id, *range(65, 65 + num_top)] for token_id in token_ids]
    values = array("f", [value for _ in rows for value in (-0.5, *(-1.0 - place for place in range(num_top)))])
    return TokenLogprobs(
        token_ids=_int32(*(token_id for row in rows for token_id in row)),
        logprobs=values.tobytes(),
        ranks=_int32(*(1 for _ in rows)),
        num_columns=1 + num_top,
    )


def _int32(*values: int) -> bytes:
    return array("i", values).tobytes()

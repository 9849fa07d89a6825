"""An engine without a model: speaks the real protocol on the real sockets and says the same sentence in every request.

Requests are divided into `--groups` by their `priority` field. Once all have begun, a group gets one token per request whenever
the sink reports that its tokens before have arrived (the fastest that still makes one event of each token), or all groups get
one `--rate` times a second. Lines on stdout: "begin" and "end" of what is timed, then a JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from array import array
from pathlib import Path

import zmq

from penstock.frontend.tokenizer import Tokenizer
from penstock.ipc import messages
from penstock.ipc.messages import Outputs, Submit

from .link import Link, facts

SENTENCE = 'The quick brown fox says "no" to a lazy dog, then walks home and writes a short letter about it.\n'
ALL_BEGUN = 255
"""The sink's byte for "every stream has its first token"; other bytes are groups whose tokens have arrived."""
MAX_TOKENS = 1 << 20
_STALL_S = 2.0


class StandIn:
    """One frontend's engine, for one run."""

    def __init__(self, socket_dir: Path, model_dir: Path, acks: int, num_groups: int, rate: float) -> None:
        """`acks`: what the sink writes to. `rate`: steps per second, 0 for as many as arrive."""
        self._tokenizer = Tokenizer.from_dir(model_dir)
        self._link = Link(socket_dir, facts(model_dir, self._tokenizer, max_model_len=2 * MAX_TOKENS, num_blocks=1), tuple)
        self._acks = acks
        self._link.poller.register(acks, zmq.POLLIN)
        self._sentence = self._tokenizer.encode(SENTENCE, add_special_tokens=False)
        self._step_s = 1 / rate if rate else 0.0
        self._identity = b""
        self._members: list[array[int]] = [array("i") for _ in range(num_groups)]
        self._num_tokens = [1] * num_groups

    def run(self, warmup_s: float, seconds: float) -> dict[str, object]:
        """One run; the figures of its timed part, and what every stream of a group must have read."""
        while ALL_BEGUN not in self._serve(50):
            pass
        groups = range(len(self._members))
        for group in groups:
            self._send_tokens(group)
        self._keep_busy(warmup_s)
        print("begin", flush=True)
        started_s, num_before = time.perf_counter(), self._num_sent()
        num_stalls = self._keep_busy(seconds)
        wall_s, num_tokens = time.perf_counter() - started_s, self._num_sent() - num_before
        print("end", flush=True)
        for group in groups:
            self._send(group, [], messages.FinishReason.LENGTH)
        digests = [text_digest(self._tokenizer.decode(self._said(0, count))) for count in self._num_tokens]
        return {
            "tokens_per_s": num_tokens / wall_s,
            "num_tokens": self._num_sent(),
            "num_stalls": num_stalls,
            "digests": digests,
        }

    def serve_until_sink_ends(self) -> None:
        """Answers what still comes."""
        try:
            while True:
                self._serve(100)
        except EOFError:
            return

    def _keep_busy(self, seconds: float) -> int:
        """How often nothing arrived for _STALL_S."""
        now_s = last_s = due_s = time.perf_counter()
        end_s, num_stalls = now_s + seconds, 0
        all_groups = bytes(range(len(self._members)))
        while now_s < end_s:
            arrived = self._serve(max(0, int(1e3 * (due_s - now_s))) if self._step_s else 100)
            now_s = time.perf_counter()
            if self._step_s:
                arrived = all_groups if now_s >= due_s else b""
                due_s += self._step_s if arrived else 0.0
            elif not arrived and now_s - last_s > _STALL_S:
                num_stalls += 1
                arrived = all_groups
            last_s = now_s if arrived else last_s
            for group in arrived:
                self._send_tokens(group)
        return num_stalls

    def _serve(self, timeout_ms: int) -> bytes:
        """Looks at all sources once; the sink's bytes. Raises EOFError when the sink has ended."""
        received, readable = self._link.receive(timeout_ms)
        for identity, message in received:
            if isinstance(message, Submit):
                self._take(identity, message)
        if self._acks not in readable:
            return b""
        data = os.read(self._acks, 4096)
        if not data:
            raise EOFError
        return data

    def _take(self, identity: bytes, submit: Submit) -> None:
        self._identity = identity
        self._members[submit.priority].append(submit.request_id)
        first = array("i", [submit.request_id])
        detail = messages.Detail(request_id=submit.request_id, num_cached_tokens=0)
        self._link.send(identity, self._outputs(first, 0, self._said(0, 1), 0, detail))

    def _send_tokens(self, group: int) -> None:
        position = self._num_tokens[group]
        self._send(group, self._said(position, 1), 0)
        self._num_tokens[group] += 1

    def _send(self, group: int, token_ids: list[int], finish: int) -> None:
        self._link.send(self._identity, self._outputs(self._members[group], self._num_tokens[group], token_ids, finish))

    def _outputs(
        self, request_ids: array[int], position: int, token_ids: list[int], finish: int, *details: messages.Detail
    ) -> Outputs:
        num = len(request_ids)
        return Outputs(
            engine_boot_id=self._link.boot_id,
            request_ids=request_ids.tobytes(),
            positions=array("i", [position]).tobytes() * num,
            counts=array("i", [len(token_ids)]).tobytes() * num,
            token_ids=array("i", token_ids).tobytes() * num,
            finish_reasons=bytes([finish]) * num,
            details=details,
        )

    def _said(self, start: int, count: int) -> list[int]:
        return [self._sentence[place % len(self._sentence)] for place in range(start, start + count)]

    def _num_sent(self) -> int:
        return sum(len(members) * count for members, count in zip(self._members, self._num_tokens, strict=True))


def text_digest(text: str) -> str:
    """A text in short."""
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Runs until the sink ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket_dir", type=Path)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--acks-fd", type=int, required=True)
    parser.add_argument("--groups", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--warmup", type=float, required=True, help="seconds")
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    stand_in = StandIn(arguments.socket_dir, arguments.model_dir, arguments.acks_fd, arguments.groups, arguments.rate)
    print(json.dumps(stand_in.run(arguments.warmup, arguments.seconds)), flush=True)
    stand_in.serve_until_sink_ends()


if __name__ == "__main__":
    main()

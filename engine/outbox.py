"""What the engine has to tell one frontend and has not sent yet.

Tokens stay arrays from the step to the message, and those of the same request are joined, so a frontend that reads slowly costs
no more than its requests' tokens. First and last tokens go out at once, others at most every FLUSH_INTERVAL_S, so that a model
with half-millisecond steps does not send a thousand messages a second to each frontend. Nothing is dropped as long as the
frontend is there.
"""

from __future__ import annotations

import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..ipc.messages import Detail, FinishReason, Outputs, Rejected, ToFrontend, TokenLogprobs
from ..ipc.sockets import SlowPeer
from .outputs import RequestOutput
from .plan import PositionLogprobs
from .token_runs import TokenRuns, chain, join

FLUSH_INTERVAL_S = 0.002
RETRY_INTERVAL_S = 0.01
"""After a frontend's queue was full."""
MAX_UNJOINED = 64
"""Of as many runs of tokens one is made, should they not be due before."""
MESSAGE_BYTES = 8 << 20
"""One message is closed when it has grown to this; a single request's part is never divided."""

Send = Callable[[ToFrontend], None]
"""Sends one message without blocking; raises SlowPeer or GonePeer."""


@dataclass(slots=True)
class _Extra:
    """What the unsent outputs of one request have beside tokens, joined."""

    finish_reason: FinishReason | None = None
    num_cached_tokens: int | None = None
    stop_token_id: int | None = None
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: PositionLogprobs | None = None
    error: str | None = None

    def add(self, output: RequestOutput) -> None:
        self.finish_reason = output.finish_reason
        self.stop_token_id = output.stop_token_id
        self.error = output.error
        if output.num_cached_tokens is not None:
            self.num_cached_tokens = output.num_cached_tokens
        if output.logprobs is not None:
            self.logprobs.append(output.logprobs)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs

    def detail(self, request_id: int) -> Detail | None:
        """What is to be said beside the tokens; None for most outputs of most requests."""
        has_any = self.num_cached_tokens, self.stop_token_id, self.prompt_logprobs, self.error
        if not self.logprobs and has_any == (None, None, None, None):
            return None
        return Detail(
            request_id=request_id,
            num_cached_tokens=self.num_cached_tokens,
            stop_token_id=self.stop_token_id,
            logprobs=pack_logprobs(self.logprobs) if self.logprobs else None,
            prompt_logprobs=pack_logprobs([self.prompt_logprobs]) if self.prompt_logprobs is not None else None,
            error=self.error,
        )


class Outbox:
    """Collects outputs for one frontend; `flush` sends what is due."""

    def __init__(self, engine_boot_id: bytes) -> None:
        self._engine_boot_id = engine_boot_id
        self._runs: list[TokenRuns] = []
        self._num_steps = 0
        """Whose outputs `_runs` are, no more than one run of a request each; the special ones of a step come first."""
        self._extras: dict[int, _Extra] = {}
        self._messages: deque[Outputs] = deque()
        self._rejections: deque[Rejected] = deque()
        self._is_urgent = False
        self._is_slow = False
        self._due_s = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether everything has been sent."""
        return not (self._runs or self._messages or self._rejections)

    def add(self, special: Sequence[tuple[int, RequestOutput]], plain: TokenRuns | None = None) -> None:
        """Takes what a step yielded for the frontend's requests, one output or run of each: (request id, output) and tokens."""
        if special:
            self._runs.append(_runs_of(special))
            for request_id, output in special:
                if request_id not in self._extras:
                    self._extras[request_id] = _Extra()
                self._extras[request_id].add(output)
                if output.finish_reason is not None or output.num_cached_tokens is not None:
                    self._is_urgent = True
        if plain is not None:
            self._runs.append(plain)
        self._num_steps += 1
        if len(self._runs) >= MAX_UNJOINED:
            self._runs = [join(chain(self._runs))]

    def reject(self, rejected: Rejected) -> None:
        """Takes a refusal."""
        self._rejections.append(rejected)
        self._is_urgent = True

    def flush(self, send: Send, now_s: float, *, at_once: bool) -> None:
        """Sends what is due, or everything; keeps the rest when the frontend is slow. Raises GonePeer when it is gone."""
        can_wait = self._is_slow or not (at_once or self._is_urgent)
        if self.is_empty or (now_s < self._due_s and can_wait):
            return
        self._due_s = now_s + FLUSH_INTERVAL_S
        self._is_urgent = self._is_slow = False
        try:
            while self._rejections:
                send(self._rejections[0])
                self._rejections.popleft()
            while self._messages or self._runs:
                if not self._messages:
                    self._messages += self._make_messages()
                send(self._messages[0])
                self._messages.popleft()
        except SlowPeer:
            self._due_s = now_s + RETRY_INTERVAL_S
            self._is_slow = True

    def _make_messages(self) -> list[Outputs]:
        """Everything that has been added, as few messages as MESSAGE_BYTES allows."""
        runs = chain(self._runs)
        if self._num_steps > 1:
            runs = join(runs)
        finish_reasons = bytearray(len(runs))
        details: dict[int, Detail] = {}
        if self._extras:
            ids = list(self._extras)
            rows = range(len(ids)) if self._num_steps == 1 else np.searchsorted(runs.request_ids, ids).tolist()
            for row, (request_id, extra) in zip(rows, self._extras.items(), strict=True):
                finish_reasons[row] = 0 if extra.finish_reason is None else extra.finish_reason
                detail = extra.detail(request_id)
                if detail is not None:
                    details[row] = detail
            self._extras = {}
        self._runs, self._num_steps = [], 0
        return [
            Outputs(
                engine_boot_id=self._engine_boot_id,
                request_ids=part.request_ids.tobytes(),
                positions=part.positions.tobytes(),
                counts=part.counts.tobytes(),
                token_ids=part.token_ids.tobytes(),
                finish_reasons=bytes(finish_reasons[start:end]),
                details=tuple(detail for row, detail in details.items() if start <= row < end),
            )
            for start, end, part in _divided(runs, details)
        ]


def _runs_of(outputs: Sequence[tuple[int, RequestOutput]]) -> TokenRuns:
    rows = np.array([(request_id, output.position, len(output.token_ids)) for request_id, output in outputs], np.int32).T
    token_ids = np.array([token_id for _, output in outputs for token_id in output.token_ids], np.int32)
    return TokenRuns(rows[0], rows[1], rows[2], token_ids)


def _divided(runs: TokenRuns, details: Mapping[int, Detail]) -> Iterator[tuple[int, int, TokenRuns]]:
    """(start, end, part): parts that are closed once they have grown to MESSAGE_BYTES."""
    if not details and 4 * len(runs.token_ids) + 16 * len(runs) <= MESSAGE_BYTES:
        yield 0, len(runs), runs
        return
    sizes = 4 * runs.counts.astype(np.int64) + 16
    for row, detail in details.items():
        sizes[row] += _size(detail.logprobs) + _size(detail.prompt_logprobs)
    ends = np.cumsum(sizes)
    if ends[-1] <= MESSAGE_BYTES:
        yield 0, len(runs), runs
        return
    start = 0
    while start < len(runs):
        before = int(ends[start] - sizes[start])
        end = 1 + int(np.searchsorted(ends, before + MESSAGE_BYTES, side="right"))
        yield start, min(end, len(runs)), runs.part(start, end)
        start = end


def pack_logprobs(parts: list[PositionLogprobs]) -> TokenLogprobs:
    """Consecutive parts as flat arrays."""
    rows = [row for part in parts for row in part.token_ids]
    values = [value for part in parts for row in part.logprobs for value in row]
    return TokenLogprobs(
        token_ids=array("i", [token_id for row in rows for token_id in row]).tobytes(),
        logprobs=struct.pack(f"<{len(values)}f", *values),
        ranks=array("i", [rank for part in parts for rank in part.ranks]).tobytes(),
        num_columns=len(rows[0]) if rows else 1,
    )


def _size(logprobs: TokenLogprobs | None) -> int:
    return 0 if logprobs is None else len(logprobs.token_ids) + len(logprobs.logprobs) + len(logprobs.ranks)

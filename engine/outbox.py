"""What the engine has to tell one frontend and has not sent yet.

Tokens of the same request are joined, so a frontend that reads slowly costs no more than its requests' tokens. First and last
tokens go out at once, others at most every FLUSH_INTERVAL_S, so that a model with half-millisecond steps does not send a
thousand messages a second to each frontend. Nothing is dropped as long as the frontend is there.
"""

from __future__ import annotations

import struct
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..ipc.messages import Detail, FinishReason, Outputs, Rejected, ToFrontend, TokenLogprobs
from ..ipc.sockets import SlowPeer
from .outputs import RequestOutput
from .plan import PositionLogprobs

FLUSH_INTERVAL_S = 0.002
RETRY_INTERVAL_S = 0.01
"""After a frontend's queue was full."""
MESSAGE_BYTES = 8 << 20
"""One message is closed when it has grown to this; a single request's part is never divided."""

Send = Callable[[ToFrontend], None]
"""Sends one message without blocking; raises SlowPeer or GonePeer."""


@dataclass(slots=True)
class _Entry:
    """The unsent outputs of one request, joined."""

    position: int
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    finish_reason: FinishReason | None = None
    num_cached_tokens: int | None = None
    stop_token_id: int | None = None
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: PositionLogprobs | None = None
    error: str | None = None

    def add(self, output: RequestOutput) -> None:
        self.token_ids.extend(output.token_ids)
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
        detail = Detail(
            request_id=request_id,
            num_cached_tokens=self.num_cached_tokens,
            stop_token_id=self.stop_token_id,
            logprobs=pack_logprobs(self.logprobs) if self.logprobs else None,
            prompt_logprobs=pack_logprobs([self.prompt_logprobs]) if self.prompt_logprobs is not None else None,
            error=self.error,
        )
        return detail if detail != Detail(request_id=request_id) else None


class Outbox:
    """Collects outputs for one frontend; `flush` sends what is due."""

    def __init__(self, engine_boot_id: bytes) -> None:
        self._engine_boot_id = engine_boot_id
        self._entries: dict[int, _Entry] = {}
        self._rejections: deque[Rejected] = deque()
        self._is_urgent = False
        self._is_slow = False
        self._due_s = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether everything has been sent."""
        return not self._entries and not self._rejections

    def add(self, request_id: int, output: RequestOutput) -> None:
        """Takes what a step yielded for one of the frontend's requests."""
        entry = self._entries.get(request_id)
        if entry is None:
            entry = self._entries[request_id] = _Entry(output.position)
        entry.add(output)
        if output.finish_reason is not None or output.num_cached_tokens is not None:
            self._is_urgent = True

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
            while self._entries:
                message, request_ids = self._next_message()
                send(message)
                for request_id in request_ids:
                    del self._entries[request_id]
        except SlowPeer:
            self._due_s = now_s + RETRY_INTERVAL_S
            self._is_slow = True

    def _next_message(self) -> tuple[Outputs, list[int]]:
        """A message of the oldest entries, and whose they are."""
        request_ids, positions, counts = array("i"), array("i"), array("i")
        token_ids, finish_reasons = array("i"), bytearray()
        details = []
        num_bytes = 0
        for request_id, entry in self._entries.items():
            if num_bytes > MESSAGE_BYTES:
                break
            request_ids.append(request_id)
            positions.append(entry.position)
            counts.append(len(entry.token_ids))
            token_ids.extend(entry.token_ids)
            finish_reasons.append(0 if entry.finish_reason is None else entry.finish_reason)
            detail = entry.detail(request_id)
            if detail is not None:
                details.append(detail)
                num_bytes += _size(detail.logprobs) + _size(detail.prompt_logprobs)
            num_bytes += 4 * len(entry.token_ids) + 16
        message = Outputs(
            engine_boot_id=self._engine_boot_id,
            request_ids=request_ids.tobytes(),
            positions=positions.tobytes(),
            counts=counts.tobytes(),
            token_ids=token_ids.tobytes(),
            finish_reasons=bytes(finish_reasons),
            details=tuple(details),
        )
        return message, request_ids.tolist()


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

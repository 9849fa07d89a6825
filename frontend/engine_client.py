"""The engine as the routes see it: submit requests and read their answers, fetch figures. Keeps every open request."""

from __future__ import annotations

import asyncio
import itertools
import logging
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ..ipc import messages
from ..ipc.messages import LEASE_TIMEOUT_S, Ready, RejectReason
from .engine_link import SILENCE_LIMIT_S, EngineLink
from .open_requests import (
    EngineUnavailable,
    NewRequest,
    OpenRequest,
    RequestFailed,
    RequestRejected,
    RequestStream,
    int32s,
)

STATS_TIMEOUT_S = 2.0
_RETRY_S = 0.05

_log = logging.getLogger(__name__)


class EngineClient:
    """One frontend's requests. Belongs to one event loop; `start` and `close` run in it."""

    def __init__(
        self,
        socket_dir: Path,
        name: str,
        *,
        on_ready: Callable[[Ready], Awaitable[None]],
        on_lost: Callable[[], None],
        heartbeat: Callable[[], messages.Heartbeat],
    ) -> None:
        """`on_ready` loads the model of a new engine, `on_lost` is called when there may be none any more; `heartbeat` makes
        what the engine hears of this frontend."""
        self._link = EngineLink(socket_dir, name, heartbeat, self)
        self._load = on_ready
        self._note_lost = on_lost
        self._open: dict[int, OpenRequest] = {}
        self._to_abort: dict[int, None] = {}
        self._streams_with_news: dict[RequestStream, None] = {}
        self._request_ids = itertools.count(1)
        self._nonces = itertools.count(1)
        self._stats_waiters: dict[int, asyncio.Future[messages.Stats]] = {}

    async def start(self) -> None:
        """Begins to look for the engine; returns at once, `is_ready` tells when it has answered."""
        await self._link.start()

    async def close(self) -> None:
        """Fails what is still open and takes leave of the engine."""
        self.on_lost("the server is shutting down")
        await self._link.close()

    @property
    def facts(self) -> Ready | None:
        """What the connected engine said of its model, None while there is none."""
        return self._link.facts

    @property
    def is_ready(self) -> bool:
        """The engine is connected and its steps advance."""
        return self._link.is_ready

    async def submit(self, requests: Sequence[NewRequest], facts: Ready, *, tokens_per_wake_up: int = 1) -> RequestStream:
        """Submits the requests and returns the stream to read their answers from; its `close` must be called.

        `facts` are those the requests were made for: another engine may have another vocabulary. Raises EngineUnavailable
        when that engine is not there, silent, or does not read. On a CPU, where steps can be long, requests wait for an
        engine that is silent; a GPU's engine that is silent hangs. Of each request's tokens the first wakes the reader at once,
        then every `tokens_per_wake_up` together, and those left at its end.
        """
        if self._link.facts is None:
            raise EngineUnavailable("the engine is not ready")
        if self._link.facts != facts:
            raise EngineUnavailable("the engine was restarted")
        if self._link.stall_s > (SILENCE_LIMIT_S if facts.device == "cpu" else LEASE_TIMEOUT_S):
            raise EngineUnavailable("the engine does not answer")
        opened = [OpenRequest(next(self._request_ids), new, tokens_per_wake_up) for new in requests]
        stream = RequestStream(opened, self._give_up, self._streams_with_news)
        try:
            for request in opened:
                self._open[request.request_id] = request
                if not await self._link.send_data(_submit_message(request)):
                    raise EngineUnavailable("the engine's queue is full")
        except BaseException:
            stream.close()
            raise
        return stream

    async def fetch_stats(self) -> messages.Stats:
        """The whole server's figures; raises EngineUnavailable."""
        if self._link.facts is None:
            raise EngineUnavailable("the engine is not ready")
        nonce = next(self._nonces)
        waiter: asyncio.Future[messages.Stats] = asyncio.get_running_loop().create_future()
        self._stats_waiters[nonce] = waiter
        try:
            async with asyncio.timeout(STATS_TIMEOUT_S):
                while not await self._link.send_control(messages.StatsRequest(nonce)):
                    await asyncio.sleep(_RETRY_S)  # the control pair connects a moment after the data pair
                return await waiter
        except TimeoutError as error:
            raise EngineUnavailable("the engine does not answer") from error
        finally:
            del self._stats_waiters[nonce]

    async def on_ready(self, facts: Ready) -> None:
        """LinkUser: loads the model."""
        await self._load(facts)

    async def on_tick(self) -> None:
        """LinkUser: aborts that found the engine's queue full are tried again."""
        await self._send_aborts()

    def on_lost(self, reason: str) -> None:
        """LinkUser: ends every open request with an error that invites to try again."""
        if self._open:
            _log.error("%d open requests failed: %s", len(self._open), reason)
        for request in self._open.values():
            request.fail(EngineUnavailable(reason))
        self._to_abort.update(dict.fromkeys(self._open))
        self._open.clear()
        self.on_messages_taken()
        self._note_lost()

    def on_message(self, message: messages.Outputs | messages.Rejected | messages.Stats) -> None:
        """LinkUser: hands on to whom it concerns."""
        if isinstance(message, messages.Outputs):
            self._take_outputs(message)
        elif isinstance(message, messages.Rejected):
            request = self._open.pop(message.request_id, None)
            if request is not None:
                request.fail(RequestRejected(RejectReason(message.reason), message.message, message.param))
        else:
            waiter = self._stats_waiters.get(message.nonce)
            if waiter is not None and not waiter.done():
                waiter.set_result(message)

    def on_messages_taken(self) -> None:
        """LinkUser: wakes the readers, each once for all messages."""
        streams = list(self._streams_with_news)
        self._streams_with_news.clear()
        for stream in streams:
            if stream.on_news is not None:
                stream.on_news()

    def _take_outputs(self, outputs: messages.Outputs) -> None:
        request_ids, positions, counts, token_ids = (
            int32s(data) for data in (outputs.request_ids, outputs.positions, outputs.counts, outputs.token_ids)
        )
        details = {detail.request_id: detail for detail in outputs.details}
        start = 0
        for request_id, position, count, finish in zip(request_ids, positions, counts, outputs.finish_reasons, strict=True):
            request = self._open.get(request_id)
            if request is not None:
                request.extend(position, token_ids[start : start + count], finish, details.get(request_id) if details else None)
                if request.is_over:
                    self._end(request)
            start += count

    def _end(self, request: OpenRequest) -> None:
        del self._open[request.request_id]
        if isinstance(request.error, RequestFailed):
            _log.error("request %d failed: %s", request.request_id, request.error)
            self._give_up_ids([request.request_id])

    def _give_up(self, requests: Sequence[OpenRequest]) -> None:
        """Aborts those of the requests that are not over. Never waits, so that it may run in any `finally`."""
        running = [request for request in requests if self._open.pop(request.request_id, None) is not None]
        for request in running:
            request.is_over = True
        if running:
            self._give_up_ids([request.request_id for request in running])

    def _give_up_ids(self, request_ids: Sequence[int]) -> None:
        self._to_abort.update(dict.fromkeys(request_ids))
        self._link.spawn(self._send_aborts())

    async def _send_aborts(self) -> None:
        request_ids = array("i", self._to_abort)
        if request_ids and await self._link.send_control(messages.Abort(request_ids.tobytes())):
            for request_id in request_ids:
                self._to_abort.pop(request_id, None)


def _submit_message(request: OpenRequest) -> messages.Submit:
    new = request.new
    return messages.Submit(
        request_id=request.request_id,
        token_ids=new.prompt_token_ids.tobytes(),
        num_output_tokens=0,
        sampling=new.sampling,
        priority=new.priority,
        cache_salt=new.cache_salt,
    )

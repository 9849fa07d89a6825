"""A request the engine works on, as this frontend knows it, and the stream its answer is read from.

`OpenRequest` keeps prompt, parameters and every token so far in one place. A reader takes what has arrived since its last
look as one merged `Delta`, so a slow reader costs no memory beyond the tokens themselves.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..ipc.messages import Detail, FinishReason, RejectReason, Sampling, TokenLogprobs


class EngineUnavailable(Exception):
    """The engine is away, still loading, hung, full or shutting down; the request may be tried again."""


class RequestFailed(Exception):
    """The engine took the request and failed it; the text is for the log."""


class RequestRejected(Exception):
    """The engine refused the request before computing anything."""

    def __init__(self, reason: RejectReason, message: str, param: str | None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRequest:
    """What one Submit says."""

    prompt_token_ids: array[int]
    """int32."""
    sampling: Sampling
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class LogprobRow:
    """Log-probabilities of one position: the token itself first, then the likeliest in falling order."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(slots=True)
class Delta:
    """What has arrived for one request since its reader last looked."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobRow] = field(default_factory=list)
    """One row a token, if asked for."""
    prompt_logprobs: list[LogprobRow] | None = None
    """Of prompt positions 1 .. n-1, once."""
    num_cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None


class OpenRequest:
    """One request between Submit and its terminal event: enough to answer for it, and to submit it again."""

    def __init__(self, request_id: int, new: NewRequest, tokens_per_wake_up: int = 1) -> None:
        """The first token is news, then as many new ones, then the end with what is left."""
        self.request_id = request_id
        self.new = new
        self.output_token_ids: list[int] = []
        self._num_taken = 0
        self._tokens_per_wake_up = tokens_per_wake_up
        self._more: Delta | None = None
        self.error: Exception | None = None
        self.is_over = False
        """Nothing more will come, or it is not wanted."""
        self.notify: Callable[[], None] = lambda: None

    def extend(self, position: int, token_ids: Sequence[int], finish: int, detail: Detail | None) -> None:
        """Takes one entry of Outputs. Repeated tokens are skipped; a gap fails the request."""
        num_known = len(self.output_token_ids)
        if position == num_known and token_ids and not finish and detail is None:
            self.output_token_ids.extend(token_ids)
            if self._is_enough:
                self.notify()
            return
        if position > num_known:
            self.fail(RequestFailed(f"lost the tokens {num_known} to {position - 1}"))
            return
        if position + len(token_ids) < num_known:
            return
        num_repeated = num_known - position
        new_token_ids = token_ids[num_repeated:]
        self.output_token_ids.extend(new_token_ids)
        if detail is not None:
            self._take_detail(detail, num_repeated)
        if finish:
            self._finish(FinishReason(finish), detail)
        elif new_token_ids and self._is_enough:
            self.notify()

    def fail(self, error: Exception) -> None:
        """Ends the request; its reader gets `error` after what had arrived before."""
        if not self.is_over:
            self.error = error
            self.is_over = True
            self.notify()

    @property
    def has_new_tokens(self) -> bool:
        """Some were not taken yet."""
        return self._num_taken < len(self.output_token_ids)

    @property
    def has_tokens_alone(self) -> bool:
        """What is new is tokens and nothing else."""
        return self._more is None and not self.is_over

    @property
    def _is_enough(self) -> bool:
        return self._num_taken == 0 or len(self.output_token_ids) - self._num_taken >= self._tokens_per_wake_up

    def take(self) -> Delta:
        """What is new since the last take."""
        delta, self._more = self._more or Delta(), None
        delta.token_ids = self.take_token_ids()
        return delta

    def take_token_ids(self) -> list[int]:
        """What is new since the last take, where that is tokens alone."""
        token_ids = self.output_token_ids[self._num_taken :]
        self._num_taken += len(token_ids)
        return token_ids

    def _pending(self) -> Delta:
        if self._more is None:
            self._more = Delta()
        return self._more

    def _take_detail(self, detail: Detail, num_repeated: int) -> None:
        pending = self._pending()
        if detail.num_cached_tokens is not None:
            pending.num_cached_tokens = detail.num_cached_tokens
        if detail.logprobs is not None:
            pending.logprobs.extend(_rows(detail.logprobs)[num_repeated:])
        if detail.prompt_logprobs is not None:
            pending.prompt_logprobs = _rows(detail.prompt_logprobs)

    def _finish(self, reason: FinishReason, detail: Detail | None) -> None:
        if reason is FinishReason.ERROR:
            self.fail(RequestFailed((detail and detail.error) or "no reason given"))
        elif reason is FinishReason.ABORT:
            self.fail(RequestFailed("aborted by the engine"))
        else:
            pending = self._pending()
            pending.finish_reason = reason
            pending.stop_token_id = detail.stop_token_id if detail else None
            self.is_over = True
            self.notify()


class RequestStream:
    """The answers to one or several requests that are read together: `async for index, delta in stream`, or `take` after
    every `on_news`.

    Ends when all requests have; raises what any of them failed with. `close` must be called in any case: it gives up
    what is not over yet.
    """

    def __init__(
        self,
        requests: Sequence[OpenRequest],
        give_up: Callable[[Sequence[OpenRequest]], None],
        with_news: dict[RequestStream, None],
    ) -> None:
        """A stream with news puts itself into `with_news`; whoever owns that calls its `on_news` soon."""
        self._requests = requests
        self._give_up = give_up
        self._streams_with_news = with_news
        self.on_news: Callable[[], None] | None = None
        """Called when something can be read that could not be before."""
        self._with_news: dict[int, None] = {}
        self._num_open = len(requests)
        for index, request in enumerate(requests):
            request.notify = partial(self._on_news, index)

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        while (news := self.take()) is None:
            if self.is_over:
                raise StopAsyncIteration
            await self.wait()
        return news

    @property
    def is_over(self) -> bool:
        """Everything was read."""
        return self._num_open == 0

    def take(self) -> tuple[int, Delta] | None:
        """What is new of one of the requests, None if there is nothing; raises what the request failed with."""
        if not self._with_news:
            return None
        index = next(iter(self._with_news))
        request = self._requests[index]
        if request.error is not None and not request.has_new_tokens:
            raise request.error
        if request.error is None:
            del self._with_news[index]
            if request.is_over:
                self._num_open -= 1
        return index, request.take()

    def take_token_ids(self) -> tuple[int, list[int]] | None:
        """Like `take`, but None also where the next news are more than tokens."""
        for index in self._with_news:
            request = self._requests[index]
            if not request.has_tokens_alone:
                break
            del self._with_news[index]
            return index, request.take_token_ids()
        return None

    async def wait_for_news(self, timeout_s: float) -> None:
        """Returns when something can be read, or after the timeout; raises a failure that came before any token."""
        if not self._with_news:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.wait()
            except TimeoutError:
                return
        for index in self._with_news:
            request = self._requests[index]
            if request.error is not None and not request.output_token_ids:
                raise request.error

    def stop(self, index: int) -> None:
        """Gives up one of the requests, with what else might still come of it."""
        request = self._requests[index]
        if request.is_over and index not in self._with_news:
            return
        self._with_news.pop(index, None)
        self._num_open -= 1
        self._give_up([request])

    def close(self) -> None:
        """Gives up every request that is not over."""
        self._give_up(self._requests)

    async def wait(self) -> None:
        """Returns at the next news."""
        waiter = asyncio.get_running_loop().create_future()
        self.on_news = lambda: None if waiter.done() else waiter.set_result(None)
        try:
            await waiter
        finally:
            self.on_news = None

    def _on_news(self, index: int) -> None:
        self._with_news[index] = None
        self._streams_with_news[self] = None


def int32s(data: bytes) -> list[int]:
    """Raw little-endian int32 as a list."""
    values = array("i")
    values.frombytes(data)
    return values.tolist()


def _rows(block: TokenLogprobs) -> list[LogprobRow]:
    width = block.num_columns
    token_ids = int32s(block.token_ids)
    logprobs = array("f")
    logprobs.frombytes(block.logprobs)
    return [
        LogprobRow(tuple(token_ids[start : start + width]), tuple(logprobs[start : start + width]))
        for start in range(0, len(token_ids), width)
    ]

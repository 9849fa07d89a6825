"""The bytes of one streamed answer's events, as far as its generation has come, and their way to the client.

A token costs a look-up and one write: its event is that of another token with the text exchanged. Whatever is more than text
(the first and last event of a choice, log-probabilities, stop strings) is rendered in full.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

from .direct_writer import DirectWriter
from .generation import ChoiceDelta, Generation
from .open_requests import Delta
from .openai_types import StreamOptions
from .shape import Shape
from .sse import DONE, event

_MARK = uuid.uuid4().hex
"""Stands for the text of an event while its frame is made; nothing else in an event reads like it."""


class EventSource:
    """One answer's events in order. `to_error_event` renders what the generation failed with."""

    def __init__(
        self,
        generation: Generation,
        shape: Shape,
        options: StreamOptions,
        to_error_event: Callable[[Exception], bytes],
    ) -> None:
        self._generation = generation
        self._shape = shape
        self._options = options
        self._to_error_event = to_error_event
        self._head = shape.head(streamed=True)
        self._frames: dict[int, tuple[bytes, bytes]] = {}
        self._has_frames = shape.is_text_alone and not options.continuous_usage_stats
        self.is_over = False
        """The last event was taken."""

    def take(self) -> bytes:
        """The events that are new, tokens of the same choice joined; nothing if there are none."""
        stream = self._generation.stream
        events = b""
        try:
            while (tokens := stream.take_token_ids()) is not None:
                events += self._text_event(*tokens)
            while (news := stream.take()) is not None:
                events += self._events(*news)
            if stream.is_over:
                self.is_over = True
                events += self._end()
        except Exception as error:
            self.is_over = True
            events += self._to_error_event(error)
        return events

    async def chunks(self, writer: DirectWriter | None) -> AsyncIterator[bytes]:
        """Yields what goes through ASGI; what can go through the writer does so meanwhile. Closes the generation."""
        try:
            while not self.is_over:
                if events := self.take():
                    yield events
                elif writer is not None:
                    await self._write_directly(writer)
                else:
                    await self._generation.stream.wait()
        finally:
            self._generation.close()

    async def _write_directly(self, writer: DirectWriter) -> None:
        """Writes news as they come, until the source is over or the client has fallen behind."""
        stopped = asyncio.get_running_loop().create_future()

        def on_news() -> None:
            if writer.takes_more:
                if events := self.take():
                    writer.write(events)
                if not self.is_over:
                    return
            if not stopped.done():
                stopped.set_result(None)

        stream = self._generation.stream
        stream.on_news = on_news
        try:
            await stopped
        finally:
            stream.on_news = None

    def _text_event(self, index: int, token_ids: list[int]) -> bytes:
        frame = self._frames.get(index)
        if frame is not None:
            text = self._generation.read_escaped(index, token_ids)
            if text is not None:
                return frame[0] + text + frame[1] if text else b""
        return self._events(index, Delta(token_ids))

    def _events(self, index: int, delta: Delta) -> bytes:
        events = b"".join(self._rendered(self._generation.read(index, delta)))
        if self._has_frames and index not in self._frames and delta.finish_reason is None:
            [marked] = self._rendered(ChoiceDelta(index, _MARK, [], []))
            before, after = marked.split(_MARK.encode())
            self._frames[index] = before, after
        return events

    def _rendered(self, delta: ChoiceDelta) -> Iterator[bytes]:
        for choice in self._shape.chunks(delta):
            chunk = {**self._head, "choices": [choice]}
            if self._options.continuous_usage_stats:
                chunk["usage"] = self._generation.usage_of(delta.index)
            yield event(chunk)

    def _end(self) -> bytes:
        if not self._options.include_usage:
            return DONE
        return event({**self._head, "choices": [], "usage": self._generation.usage()}) + DONE

"""How a generation becomes an HTTP answer: one JSON object or a stream of chunks. Shared by chat and completions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .direct_writer import direct_writer
from .errors import ApiError, BadRequest, ClientGone, InternalError, to_api_error
from .event_source import EventSource
from .generation import Generation
from .openai_types import GenerationFields, StreamOptions
from .served_model import ServedModel
from .service import Service
from .shape import Shape
from .sse import StreamResponse, event

ADMISSION_WAIT_S = 0.5
"""A stream's headers wait this long for the first token, so that a refusal still gets its own HTTP status."""
_CUT_GRACE_S = 5.0
"""Streams that outlive the shutdown are told so first and cut this much later."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def model_for(fields: GenerationFields, service: Service) -> ServedModel:
    """The model asked for, once what both endpoints refuse is refused. Raises Unavailable, ModelNotFound, BadRequest."""
    model = service.ready_model()
    model.check_name(fields.model)
    service.undeclared_fields.check(fields.model_extra)
    if fields.stream_options is not None and not fields.stream:
        raise BadRequest("stream_options is only allowed when stream is true.", "stream_options")
    return model


async def answer(
    request: Request, service: Service, fields: GenerationFields, generation: Generation, shape: Shape
) -> Response:
    """Streams or collects the generation, and closes it whatever happens."""
    try:
        if not fields.stream:
            return JSONResponse(await unless_gone(request, _whole(generation, shape)))
        await unless_gone(request, generation.stream.wait_for_news(ADMISSION_WAIT_S))
    except BaseException:
        generation.close()
        raise
    source = EventSource(
        generation,
        shape,
        fields.stream_options or StreamOptions(),
        lambda error: event(_error_for_client(error, request).body()),
    )
    return StreamResponse(
        source.chunks(direct_writer(request.scope)),
        close=generation.close,
        grace_s=service.config.shutdown_timeout_s + _CUT_GRACE_S,
    )


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Does the work, but gives it up with ClientGone as soon as the client closes its connection."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        watching.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(generation: Generation, shape: Shape) -> dict[str, Any]:
    try:
        async for delta in generation.deltas():
            shape.add(delta)
    finally:
        generation.close()
    return {**shape.head(streamed=False), "choices": shape.choices(), "usage": generation.usage()}


def _error_for_client(error: Exception, request: Request) -> ApiError:
    request_id = str(request.scope.get("request_id"))
    known = to_api_error(error, request_id)
    if known is None:
        _log.error("request %s failed in its stream", request_id, exc_info=error)
    return known or InternalError(request_id)

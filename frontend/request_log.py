"""Around every request: its id, its place in the figures, and the last resort for exceptions that nobody expected."""

from __future__ import annotations

import logging
import re
import uuid
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import InternalError, error_response

REQUEST_ID_HEADER = b"x-request-id"
_ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_log = logging.getLogger(__name__)


class RequestLog:
    """ASGI middleware, the outermost. `responses` counts "route status"; unknown routes are counted together."""

    def __init__(self, app: ASGIApp, responses: Counter[str]) -> None:
        self._app = app
        self._responses = responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["request_id"] = _request_id(scope)
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (REQUEST_ID_HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("request %s to %.200r failed", request_id, scope["path"])
            if status is None:
                await error_response(InternalError(request_id))(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._responses[f"{route} {status or 499}"] += 1


def _request_id(scope: Scope) -> str:
    """The client's own id if it is short and harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER and _ACCEPTED_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex

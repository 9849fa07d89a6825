"""What a request body may be: JSON, not compressed, not over the limit, and not endlessly slow."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, BadRequest, BodyTooLarge, HeadersTooLarge, RequestTimeout, UnsupportedMedia, error_response

MAX_HEADER_BYTES = 64 << 10
BODY_PAUSE_LIMIT_S = 30.0
"""The next piece of a body must come within this time."""


class BodyLimit:
    """ASGI middleware. What the headers show is refused before the body is read, the rest when the limit is passed."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _check_headers(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"The request's headers are larger than {MAX_HEADER_BYTES} bytes.")
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            raise UnsupportedMedia("Compressed bodies are not accepted.")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise BadRequest("The Content-Length header is not a number.")
        if int(length[:20]) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] == "POST" and media_type != b"application/json":
            raise UnsupportedMedia("The body must be JSON: send Content-Type: application/json.")

    def _limited(self, receive: Receive) -> Receive:
        num_bytes = 0
        is_complete = False

        async def limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()
            try:
                async with asyncio.timeout(BODY_PAUSE_LIMIT_S):
                    message = await receive()
            except TimeoutError as error:
                raise RequestTimeout("The request body did not arrive in time.") from error
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                is_complete = not message.get("more_body", False)
                if num_bytes > self._max_body_bytes:
                    raise BodyTooLarge(self._max_body_bytes)
            return message

        return limited

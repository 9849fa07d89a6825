"""The API key: every route but the health probes asks for it once one is set."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import Unauthorized, error_response

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""They say nothing beyond their status."""


class Auth:
    """ASGI middleware; decides on the path that the router sees, before anything of the body is read."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS and not self._is_allowed(scope):
            await error_response(Unauthorized("A valid API key is missing: send Authorization: Bearer KEY."))(
                scope, receive, send
            )
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(headers) != 1:
            return False
        scheme, _, key = headers[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        digest = hashlib.sha256(key.strip()).digest()
        # Every key is compared: the time says nothing about which one came close.
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0

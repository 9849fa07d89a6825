"""What a client is told when its request fails, always in OpenAI's shape: {"error": {message, type, param, code}}.

ApiError
├── BadRequest 400            a value or field is wrong; `param` names it
│   └── ContextTooLong        code context_length_exceeded
├── Unauthorized 401          code invalid_api_key
├── NotFound 404
│   └── ModelNotFound         code model_not_found
├── RequestTimeout 408        the body did not come
├── BodyTooLarge 413
├── UnsupportedMedia 415
├── HeadersTooLarge 431
├── ClientGone 499            nobody reads it; for the figures
├── InternalError 500         never carries an exception's own text
└── Unavailable 503           with Retry-After
"""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..ipc.messages import RejectReason
from .open_requests import EngineUnavailable, RequestFailed, RequestRejected

RETRY_AFTER_S = 2


class ApiError(HTTPException):
    """An error with its HTTP status and what the client reads."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(self.status, message, headers)
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """The response's JSON, also the data of an error event in a stream."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class Unauthorized(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model {name[:200]!r} does not exist.", "model")


class BodyTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__(f"The request body is larger than {max_body_bytes} bytes.")


class RequestTimeout(ApiError):
    status = 408
    type = "invalid_request_error"


class UnsupportedMedia(ApiError):
    status = 415
    type = "invalid_request_error"


class HeadersTooLarge(ApiError):
    status = 431
    type = "invalid_request_error"


class ClientGone(ApiError):
    status = 499

    def __init__(self) -> None:
        super().__init__("The client closed its connection.")


class InternalError(ApiError):
    def __init__(self, request_id: str) -> None:
        super().__init__(f"Internal error. The server's log has more under request id {request_id}.")


class Unavailable(ApiError):
    status = 503
    type = "service_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": str(RETRY_AFTER_S)})


def to_api_error(error: Exception, request_id: str) -> ApiError | None:
    """The client's view of an error that this package raises on purpose; None for any other."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineUnavailable):
        return Unavailable(f"The server cannot take the request: {error}. Try again.")
    if isinstance(error, RequestFailed):
        return InternalError(request_id)
    if isinstance(error, RequestRejected):
        if error.reason is RejectReason.TOO_LONG:
            return ContextTooLong(error.message, error.param)
        if error.reason is RejectReason.INVALID:
            return BadRequest(error.message, error.param)
        return Unavailable(error.message)
    return None


def error_response(error: ApiError) -> JSONResponse:
    """The whole HTTP answer for an error."""
    return JSONResponse(error.body(), error.status_code, error.headers)


async def on_own_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of the errors that `to_api_error` knows."""
    request_id = str(request.scope.get("request_id"))
    return error_response(to_api_error(error, request_id) or InternalError(request_id))


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Handler of what Starlette and FastAPI raise themselves: unknown routes, wrong methods, unreadable bodies."""
    assert isinstance(error, StarletteHTTPException)
    messages = {404: f"Unknown route {request.url.path[:200]!r}.", 405: f"{request.method} is not allowed here."}
    status = error.status_code
    message = messages.get(status, error.detail)
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, error.headers)


async def on_validation_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of pydantic's findings: a 400 that names the first wrong field."""
    assert isinstance(error, RequestValidationError)
    first = _deepest(error.errors())
    place = [str(part) for part in first["loc"] if part != "body"]
    param = place[0] if place else None
    where = ".".join(place) or "body"
    return error_response(BadRequest(f"{where}: {first['msg'].removeprefix('Value error, ')}", param))


def _deepest(findings: Any) -> dict[str, Any]:
    """Of several findings (one for each member of a union) the one that got furthest into the value."""
    found: dict[str, Any] = max(findings, key=lambda finding: len(finding["loc"]))
    return found

"""Request bodies as JSON, hostile ones included: what json.loads would let through is a 400 here.

Refused are NaN and Infinity (also as 1e999), lone surrogates, invalid UTF-8, integers of thousands of digits and nesting
deeper than MAX_DEPTH. Of duplicate keys the last one counts, as in every JSON parser that clients use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from .errors import BadRequest

MAX_DEPTH = 64


def parse_json(data: bytes) -> Any:
    """The value; raises BadRequest."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite_float)
    except UnicodeDecodeError as error:
        raise BadRequest("The body is not valid UTF-8.") from error
    except RecursionError as error:
        raise BadRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels.") from error
    except json.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error.msg} at character {error.pos}.") from error
    except ValueError as error:
        raise BadRequest("The JSON has a number that is out of range.") from error
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if b"\\u" in data:
        _check_surrogates(value)
    return value


def _refuse_constant(name: str) -> float:
    raise BadRequest(f"{name} is not a number in JSON.")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(text)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [item for item in level if isinstance(item, (list, dict))]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise BadRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRequest("The JSON has a lone surrogate, which is not a character.") from error


class _JsonRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


class JsonRoute(APIRoute):
    """A route whose body is parsed by `parse_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json

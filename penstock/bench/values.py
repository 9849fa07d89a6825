"""The values that only the benchmark's flags take: text -> numbers, or an ArgumentTypeError that says what would do."""

from __future__ import annotations

import json
import math
from argparse import ArgumentTypeError
from typing import Any

from .. import flag_values
from .settings import Slo


def positive_integers(text: str) -> tuple[int, ...]:
    """Numbers of requests, separated by commas."""
    return tuple(flag_values.request_count(part) for part in text.split(","))


def rates(text: str) -> tuple[float, ...]:
    """Arrivals per second, separated by commas; inf is one."""
    found = tuple(_float(part) for part in text.split(","))
    if not all(rate > 0 for rate in found):
        raise ArgumentTypeError(f"{text}: a rate is above 0")
    return found


def vocab_size(text: str) -> int:
    return flag_values.integer(2, 1 << 24, text)


def temperature(text: str) -> float:
    value = _float(text)
    if not 0 <= value <= 100:
        raise ArgumentTypeError(f"{text} is not between 0 and 100")
    return value


def number(text: str) -> float:
    value = _float(text)
    if not math.isfinite(value):
        raise ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def whole_number(text: str) -> int:
    return flag_values.integer(-flag_values.LARGEST, flag_values.LARGEST, text)


def count_or_none(text: str) -> int:
    return flag_values.integer(0, flag_values.MOST_REQUESTS, text)


def run_count(text: str) -> int:
    return flag_values.integer(1, 1000, text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f'{text!r} is not a JSON object such as {{"top_p": 0.9}}')
    return value


def limit(text: str) -> tuple[str, float]:
    """A name and milliseconds, as in ttft:200."""
    name, _, value = text.partition(":")
    if name not in ("ttft", "tpot", "e2e"):
        raise ArgumentTypeError(f"{text!r} is not ttft:MS, tpot:MS or e2e:MS")
    limit_ms = _float(value)
    if not 0 < limit_ms < math.inf:
        raise ArgumentTypeError(f"{text!r}: a limit is above 0 and finite")
    return name, limit_ms


def slo(limits: list[tuple[str, float]]) -> Slo:
    values = dict(limits)
    return Slo(ttft_ms=values.get("ttft"), tpot_ms=values.get("tpot"), e2e_ms=values.get("e2e"))

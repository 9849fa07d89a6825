"""The values flags take: text from the command line -> numbers, or an ArgumentTypeError that says what would do."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from decimal import Decimal

from .cores import frontends_for, num_usable

LARGEST = 2**63 - 1
MOST_REQUESTS = 65536
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,6})?)([kmgt]?)(i?b|i)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def size(text: str) -> int:
    """A positive whole number, also as people write sizes.

    As in vLLM a small letter counts in thousands (8k = 8,000) and a capital in 1,024s (8K = 8,192); KiB, MiB, GiB are
    1,024s and KB, MB, GB thousands, however they are capitalised.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not a number such as 8192, 8k (8,000), 8K (8,192) or 4GiB")
    number, letter, unit = match.group(1), match.group(2), (match.group(3) or "").lower()
    binary = unit.startswith("i") or (not unit and letter.isupper())
    value = Decimal(number) * (1024 if binary else 1000) ** _POWERS[letter.lower()]
    if value != int(value):
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    if not 1 <= value <= LARGEST:
        raise ArgumentTypeError(f"{text!r} must be between 1 and 2**63 - 1")
    return int(value)


def size_or_auto(text: str) -> int | None:
    """A size, or None for "auto" and -1."""
    return None if text.strip().lower() in ("auto", "-1") else size(text)


def integer(low: int, high: int, text: str) -> int:
    """A whole number in low .. high."""
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not low <= value <= high:
        raise ArgumentTypeError(f"{text} is not between {low} and {high}")
    return value


def port(text: str) -> int:
    """A TCP port; 0 lets the system choose a free one."""
    return integer(0, 65535, text)


def request_count(text: str) -> int:
    """A size that memory has slots for."""
    value = size(text)
    if value > MOST_REQUESTS:
        raise ArgumentTypeError(f"{text} is more than {MOST_REQUESTS:,}")
    return value


def name(text: str) -> str:
    """A name, not empty, as "$UNSET" in a script would be."""
    if not text.strip():
        raise ArgumentTypeError("it is empty")
    return text


def seed(text: str) -> int:
    return integer(0, LARGEST, text)


def process_count(text: str) -> int:
    return integer(1, 256, text)


def frontend_count(text: str) -> int:
    """A number of processes, or "auto": as many as suit the cores that this process may use."""
    return frontends_for(num_usable()) if text.strip().lower() == "auto" else process_count(text)


def token_count(text: str) -> int:
    """Tokens of one thing that is sent."""
    return integer(1, 65536, text)


def fraction(text: str) -> float:
    """A number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return value


def seconds(text: str) -> float:
    """A duration of at least 0 seconds."""
    value = _number(text)
    if not 0 <= value <= 86400:
        raise ArgumentTypeError(f"{text} is not between 0 and 86400 seconds")
    return value


def api_key(text: str) -> str:
    """A key as it stands in an Authorization header; commas separate several in PENSTOCK_API_KEY."""
    if not text or not text.isascii() or not text.isprintable() or " " in text or "," in text:
        raise ArgumentTypeError("an API key is made of visible ASCII characters without spaces and commas")
    return text


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise ArgumentTypeError(f"{text!r} is not a finite number")
    return value

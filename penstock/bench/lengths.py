"""Lists of (prompt tokens, output tokens): the same list for the same name, number and seed, in every process.

random.Random, seeded with text, gives the same numbers in all versions of Python.
"""

from __future__ import annotations

import math
import random
import re

from .settings import BenchError

SHAREGPT = "sharegpt"
UNIFORM = "uniform"
AGENTS = "agents"
AGENT_TURNS = 10
AGENT_SYSTEM_TOKENS = 2048
SYNONYMS = {"prefill": "1024x128", "single": "128x512", AGENTS: "300x150"}
_RANGES = re.compile(r"(\d{1,7})(?:-(\d{1,7}))?x(\d{1,7})(?:-(\d{1,7}))?")
_SHAREGPT_PROMPT = (4.87, 1.17)
_SHAREGPT_OUTPUT = (4.91, 0.97)
"""Mean and deviation of the lengths' logarithms: log-normal, cut to 4 .. 1024, about 220 tokens in and 200 out."""
_SHAREGPT_BOUNDS = (4, 1024)
_UNIFORM_BOUNDS = (100, 1024)

Pair = tuple[int, int]


def check(name: str) -> str:
    """The name, if it is one; else BenchError."""
    draw(name, 1, 0)
    return name


def draw(name: str, count: int, seed: int) -> list[Pair]:
    """`count` pairs of the distribution `name`: sharegpt, uniform (100 to 1024 each), prefill (1024x128), single (128x512),
    agents (300x150 a turn), INxOUT such as 1024x128, or ranges such as 100-500x64."""
    if name == SHAREGPT:
        return _sharegpt(count, seed)
    if name == UNIFORM:
        return _uniform(count, _UNIFORM_BOUNDS, _UNIFORM_BOUNDS, seed)
    match = _RANGES.fullmatch(SYNONYMS.get(name, name))
    if match is None:
        names = ", ".join((SHAREGPT, UNIFORM, *SYNONYMS))
        raise BenchError(f"{name!r} is not one of {names}, or lengths such as 1024x128 or 100-500x64")
    first_in, last_in, first_out, last_out = match.groups()
    prompt = (int(first_in), int(last_in or first_in))
    output = (int(first_out), int(last_out or first_out))
    for low, high in (prompt, output):
        if not 1 <= low <= high:
            raise BenchError(f"{name!r}: lengths begin at 1, and a range at its smaller end")
    return _uniform(count, prompt, output, seed)


def _sharegpt(count: int, seed: int) -> list[Pair]:
    numbers = random.Random(f"sharegpt-like-{seed}")
    low, high = _SHAREGPT_BOUNDS

    def length(mean: float, deviation: float) -> int:
        return min(high, max(low, round(math.exp(numbers.gauss(mean, deviation)))))

    return [(length(*_SHAREGPT_PROMPT), length(*_SHAREGPT_OUTPUT)) for _ in range(count)]


def _uniform(count: int, prompt: tuple[int, int], output: tuple[int, int], seed: int) -> list[Pair]:
    numbers = random.Random(f"uniform-{seed}")
    return [(numbers.randint(*prompt), numbers.randint(*output)) for _ in range(count)]

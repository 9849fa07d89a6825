"""What is known of one request, and how it travels from a client process to the parent.

All times are seconds of CLOCK_MONOTONIC, which is one clock for all processes of a machine.
"""

from __future__ import annotations

from array import array
from dataclasses import astuple, dataclass, fields
from typing import Any, Self


@dataclass(slots=True, kw_only=True)
class Record:
    """One request. What was not reached stays None."""

    index: int
    """Its place in the list; that of its conversation where there are several turns."""
    turn: int
    wanted_tokens: int
    start: float
    """When it was sent."""
    due: float | None
    """When it should have been, with a request rate."""
    first: float | None = None
    """When the first chunk with a token came."""
    last: float | None = None
    end: float | None = None
    gaps: bytes = b""
    """float32 seconds between one chunk with tokens and the next."""
    num_input: int = 0
    num_output: int = 0
    num_cached: int | None = None
    """Prompt tokens that the server found in its cache; None where it does not say."""
    has_usage: bool = False
    """The server has counted the tokens; else they are chunks."""
    error: str | None = None

    @property
    def gaps_s(self) -> array[float]:
        gaps = array("f")
        gaps.frombytes(self.gaps)
        return gaps

    @property
    def num_chunks(self) -> int:
        return 0 if self.first is None else 1 + len(self.gaps) // array("f").itemsize

    @property
    def ttft_s(self) -> float | None:
        return None if self.first is None else self.first - self.start

    @property
    def tpot_s(self) -> float | None:
        """Mean time of a token after the first: it does not depend on how a server groups tokens to chunks."""
        if self.first is None or self.last is None or self.num_output < 2:
            return None
        return (self.last - self.first) / (self.num_output - 1)

    @property
    def e2e_s(self) -> float | None:
        return None if self.end is None else self.end - self.start

    def to_wire(self) -> tuple[Any, ...]:
        return astuple(self)

    @classmethod
    def from_wire(cls, values: list[Any]) -> Self:
        return cls(**dict(zip((field.name for field in fields(cls)), values, strict=True)))

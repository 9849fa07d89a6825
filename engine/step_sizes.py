"""The sizes that steps are padded to on a GPU, so that a few CUDA graphs, and a few shapes of every kernel, serve all steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

MIXED_TOKENS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
ROW_TIERS = (16, 64, 128, 256, 512)
LARGE_STEP = 512
"""Steps beyond the last of these sizes are padded to multiples of so many tokens."""


@dataclass(frozen=True, slots=True, order=True)
class StepSize:
    """How large a step is, padding included."""

    num_tokens: int
    num_rows: int
    is_decode: bool
    """Every row has one token, token i being row i's."""
    has_shared: bool = False
    """Attention reads once what several rows share (engine.prefix_sharing)."""


def _decode_rows(max_rows: int) -> tuple[int, ...]:
    small = (1, 2, 4, 8, 16, 24, 32, 48, *range(64, 257, 16), *range(288, 513, 32), *range(576, 1025, 64))
    large = range(1152, max_rows + 1, 128)
    return (*(size for size in (*small, *large) if size < max_rows), max_rows)


class StepSizes:
    """What a runner for `max_rows` requests and `max_tokens` tokens a step pads to."""

    def __init__(self, max_rows: int, max_tokens: int) -> None:
        self._decode_rows = _decode_rows(max_rows)
        self._row_tiers = (*(tier for tier in ROW_TIERS if tier < max_rows), max_rows)
        self._mixed_tokens = MIXED_TOKENS[: bisect_left(MIXED_TOKENS, max_tokens) + 1]
        self.max_rows = max_rows
        self.max_tokens = max(max_rows, self.padded(max_tokens, 1, is_decode=False).num_tokens)

    def padded(self, num_tokens: int, num_rows: int, *, is_decode: bool) -> StepSize:
        """The smallest size that holds the step."""
        if is_decode:
            padded_rows = _at_least(self._decode_rows, num_rows)
            return StepSize(padded_rows, padded_rows, True)
        padded_tokens = -(-num_tokens // LARGE_STEP) * LARGE_STEP
        if num_tokens <= self._mixed_tokens[-1]:
            padded_tokens = _at_least(self._mixed_tokens, num_tokens)
        return StepSize(padded_tokens, _at_least(self._row_tiers, num_rows), False)

    @property
    def decodes(self) -> tuple[StepSize, ...]:
        """All sizes of decode steps, rising."""
        return tuple(StepSize(rows, rows, True) for rows in self._decode_rows)

    @property
    def mixed(self) -> tuple[StepSize, ...]:
        """All sizes of mixed steps that are worth a graph, rising; larger ones keep the GPU busy while the host launches."""
        return tuple(StepSize(num_tokens, tier, False) for num_tokens in self._mixed_tokens for tier in self._row_tiers)

    @property
    def usual(self) -> tuple[StepSize, ...]:
        """Sizes that between them launch every kernel there is: kernels differ by powers of two and by divisibility by 16."""
        decodes = (size for size in self.decodes if size.num_rows.bit_count() == 1 or size.num_rows % 16)
        ends = (self._mixed_tokens[0], self._mixed_tokens[-1])
        return (*decodes, self.decodes[-1], *(size for size in self.mixed if size.num_tokens in ends))

    @property
    def powers_of_two(self) -> tuple[StepSize, ...]:
        """Mixed sizes: where every token is a row of attention, the kernel that plans it differs by them."""
        numbers = (1 << exponent for exponent in range(6, self.max_tokens.bit_length() + 1))
        sizes = {self.padded(min(number, self.max_tokens), 1, is_decode=False) for number in numbers}
        return tuple(sorted(sizes))


def _at_least(sizes: Sequence[int], number: int) -> int:
    return sizes[bisect_left(sizes, number)]

"""Which part of every layer a process holds, and how the parts are put together.

With size 1 a process holds everything and putting together does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _alone(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallel:
    """Rank `rank` of `size` processes that hold one model together (Megatron-LM, arXiv 1909.08053)."""

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = _alone
    """The sum of all ranks' tensors of this shape."""
    all_gather: Callable[[Tensor], Tensor] = _alone
    """All ranks' tensors side by side along the last dimension, by rank."""

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size
        assert self.size == 1 or (self.all_reduce is not _alone and self.all_gather is not _alone)

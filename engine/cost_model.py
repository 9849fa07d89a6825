"""How many prompt tokens a step takes: the cost model of the matrix products, and the policy on top of it.

Up to a certain number of tokens a step costs what reading the weights costs, and prompt tokens beside decodes are nearly free;
beyond, every token costs arithmetic. `knee_tokens` finds that number for a model from measured times of its matrix products.
`PromptBudgetByCost` fills steps up to the knee while the queue is short, and takes more as it grows. Simulated on ShareGPT-like
lengths, this gives the output of small steps at 16 to 64 clients and that of large ones at 256 and more (docs/performance.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .model_config import ModelConfig

PRODUCT_TIMES_DIR = Path(__file__).parent / "product_times"
USUAL_KNEE_TOKENS = 176
"""Where a device's products were not measured: what the bandwidth and arithmetic of current cards amount to."""
QUEUE_SHARE = 8
"""A step takes at least this part of the waiting prompt tokens, so that a queue of any length is gone in a few steps."""
MIN_PROMPT_TOKENS = 64
"""Below, a step's fixed costs outweigh what it prefills."""

Shape = tuple[int, int]
"""(in features, out features) of a product."""


@dataclass(frozen=True, slots=True)
class ProductTimes:
    """Measured times of bf16 products [M, in] x [in, out] on one kind of device, by shape, then by M; microseconds.

    Shapes that were not measured are estimated from those that were: the bytes of the weights at the best bandwidth seen, the
    arithmetic at the best rate seen.
    """

    by_shape: Mapping[Shape, Mapping[int, float]]

    @classmethod
    def for_device(cls, device_name: str) -> ProductTimes | None:
        """What was measured on that device (its name as CUDA says it); None if nothing was."""
        path = PRODUCT_TIMES_DIR / f"{device_name.lower().replace(' ', '_')}.json"
        return cls.from_file(path) if path.is_file() else None

    @classmethod
    def from_file(cls, path: Path) -> ProductTimes:
        """Reads a table written by `python -m scripts.bench_kernels --products-table`."""
        rows = json.loads(path.read_bytes())["products"]
        return cls({(row["in"], row["out"]): {int(m): us for m, us in row["microseconds"].items()} for row in rows})

    @property
    def sizes(self) -> list[int]:
        """The values of M that every shape was measured at, rising."""
        measured = [set(times) for times in self.by_shape.values()]
        return sorted(set.intersection(*measured))

    def microseconds(self, shape: Shape, num_tokens: int) -> float:
        """Of one product; `num_tokens` is one of `sizes`."""
        if shape in self.by_shape:
            return self.by_shape[shape][num_tokens]
        num_weights = shape[0] * shape[1]
        per_weight = min(times[self.sizes[0]] / (k * n) for (k, n), times in self.by_shape.items())
        largest = self.sizes[-1]
        per_operation = min(times[largest] / (k * n * largest) for (k, n), times in self.by_shape.items())
        return max(num_weights * per_weight, num_weights * num_tokens * per_operation)


def product_counts(config: ModelConfig) -> dict[Shape, int]:
    """How often a step computes each product, output head included."""
    hidden, attended = config.hidden_size, config.num_heads * config.head_dim
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    counts: dict[Shape, int] = {(hidden, config.vocab_size): 1}
    for shape in (
        (hidden, qkv),
        (attended, hidden),
        (hidden, 2 * config.intermediate_size),
        (config.intermediate_size, hidden),
    ):
        counts[shape] = counts.get(shape, 0) + config.num_layers
    return counts


def knee_tokens(config: ModelConfig, times: ProductTimes) -> int:
    """Tokens per step at which the products turn from reading weights to arithmetic.

    Where two lines meet: the time at the smallest size measured, and the slope between the two largest.
    """
    counts = product_counts(config)

    def step_microseconds(num_tokens: int) -> float:
        return sum(count * times.microseconds(shape, num_tokens) for shape, count in counts.items())

    *_, large, largest = times.sizes
    slope = (step_microseconds(largest) - step_microseconds(large)) / (largest - large)
    return round(step_microseconds(times.sizes[0]) / slope)


class PromptBudgetByCost:
    """A pacing.PromptBudget."""

    def __init__(self, knee: int, max_num_batched_tokens: int) -> None:
        self._knee = knee
        self._max_num_batched_tokens = max_num_batched_tokens

    def prompt_tokens(self, num_decodes: int, num_waiting_tokens: int) -> int:
        """The most prompt tokens for a step of `num_decodes` decodes, when `num_waiting_tokens` prompt tokens wait."""
        room = self._max_num_batched_tokens - num_decodes
        if num_decodes >= self._knee:  # every token costs the same now or later; later only costs its request time
            return max(0, min(num_waiting_tokens, room))
        wanted = max(self._knee - num_decodes, num_waiting_tokens // QUEUE_SHARE, MIN_PROMPT_TOKENS)
        return max(0, min(wanted, room))

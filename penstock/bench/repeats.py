"""Several runs of one load as one report: medians, their spread, and the runs themselves.

Requests and errors are added up, the client's CPU share is the highest, and what went wrong in one run is not hidden.
"""

from __future__ import annotations

import statistics
from typing import Any

_ADDED_UP = {"requests", "ok", "errors", "wrong_length"}
_HIGHEST = {"client_cpu_share"}
_HEADLINES: dict[str, tuple[str, ...]] = {
    "output_tokens_per_s": ("output_tokens_per_s",),
    "window_output_tokens_per_s": ("window", "output_tokens_per_s"),
    "window_ttft_p50_ms": ("window", "ttft_ms", "p50"),
    "ttft_p50_ms": ("ttft_ms", "p50"),
    "ttft_p99_ms": ("ttft_ms", "p99"),
    "tpot_p50_ms": ("tpot_ms", "p50"),
    "e2e_p50_ms": ("e2e_ms", "p50"),
    "prefix_cache_hit_rate_later_turns": ("prefix_cache_hit_rate_later_turns",),
}
_SHOWN_ERRORS = 5


def combine(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One report; of a single run its own."""
    if len(runs) == 1:
        return runs[0]
    names = dict.fromkeys(name for run in runs for name in run)
    combined = {name: _merged(name, [run.get(name) for run in runs]) for name in names}
    combined["first_errors"] = combined["first_errors"][:_SHOWN_ERRORS]
    spread = {name: _range([_at(run, path) for run in runs]) for name, path in _HEADLINES.items()}
    return combined | {"spread": {name: found for name, found in spread.items() if found is not None}, "runs": runs}


def middle(runs: list[dict[str, Any]]) -> int:
    """Which run has the median of output tokens/s (of an even number the lower one)."""
    order = sorted(range(len(runs)), key=lambda number: runs[number]["output_tokens_per_s"])
    return order[(len(order) - 1) // 2]


def _merged(name: str, values: list[Any]) -> Any:
    values = [value for value in values if value is not None]
    if not values:
        return None
    first = values[0]
    if name in _ADDED_UP:
        return sum(values)
    if name in _HIGHEST:
        return max(values)
    if isinstance(first, bool):
        return any(values)
    if all(value == first for value in values) and not isinstance(first, list):
        return first
    if isinstance(first, dict):
        return {key: _merged(key, [value.get(key) for value in values]) for key in first}
    if isinstance(first, list):
        if first and isinstance(first[0], dict):
            return [_merged("", list(several)) for several in zip(*values, strict=True)]
        return [item for value in values for item in value]
    return "chunks" if name == "counted_by" else statistics.median(values)


def _range(values: list[Any]) -> dict[str, float] | None:
    if any(value is None for value in values):
        return None
    return {"lowest": min(values), "median": statistics.median(values), "highest": max(values)}


def _at(report: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = report
    for name in path:
        value = (value or {}).get(name)
    return value

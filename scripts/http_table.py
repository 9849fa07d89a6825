"""What `bench_http` has measured, as a table: medians beside the card's limit, vLLM and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .http_rows import Row

BUSY_CLIENT_SHARE = 0.85
"""From here on a row is not a server's figure."""
_COLUMNS = (
    "model",
    "clients",
    "requests",
    "runs",
    "tok/s in the window, of 1 client ms/token",
    "lowest to highest",
    "whole run",
    "vLLM",
    "x vLLM",
    "goal",
    "of the goal",
    "ideal",
    "TTFT p50 ms",
    "in the window",
    "vLLM",
    "goal",
    "TPOT p50 ms",
    "client CPU",
    "engine, frontends: cores",
    "errors",
)


def table(runs: list[dict[str, Any]], rows: Sequence[Row]) -> str:
    """Markdown, a line for each row that was measured. A whole run's figure stands in brackets where there was no window."""
    lines = [" | ".join(_COLUMNS), "|".join(["---"] * len(_COLUMNS))]
    for row in rows:
        of_row = [run for run in runs if run["row"] == row.name]
        if of_row:
            lines.append(" | ".join(_cells(row, of_row)))
    return "\n".join(f"| {line} |" for line in lines)


def headline(row: Row, figures: dict[str, Any]) -> float | None:
    """What a row is about: ms a token for one client, else output tokens/s in the window, or of the whole run without one."""
    value = figures["tpot_p50_ms"] if row.clients == 1 else figures.get("window_out_tok_s") or figures["out_tok_s"]
    return None if value is None else float(value)


def _cells(row: Row, runs: list[dict[str, Any]]) -> list[str]:
    figures = [run["figures"] for run in runs]
    values = [value for one in figures if (value := headline(row, one)) is not None]
    value = statistics.median(values) if values else None
    has_window = row.clients == 1 or all(one.get("window_out_tok_s") for one in figures)
    client_cpu = max(one["client_cpu_share"] for one in figures)
    return [
        row.model + (f", {row.shared_prefix:,} shared" if row.shared_prefix else ""),
        f"{row.clients:,}",
        f"{figures[0]['requests']:,}" + (" (short)" if runs[0]["short"] else ""),
        str(len(runs)),
        _number(value) if has_window else f"({_number(value)})",
        f"{_number(min(values))} to {_number(max(values))}" if values else "-",
        _number(_median(figures, "out_tok_s")),
        _number(row.vllm),
        _ratio(value, row.vllm, is_time=row.clients == 1, form=".2f"),
        _number(row.goal),
        _ratio(value, row.goal, is_time=row.clients == 1, form=".0%"),
        _number(row.ideal),
        _number(_median(figures, "ttft_p50_ms")),
        _number(_median(figures, "window_ttft_p50_ms")),
        _number(row.vllm_ttft_ms),
        _number(row.goal_ttft_ms),
        _number(_median(figures, "tpot_p50_ms")),
        f"{client_cpu:.2f}" + (" too busy" if client_cpu > BUSY_CLIENT_SHARE else ""),
        ", ".join(_number(_median([run["cpu_cores"] for run in runs], part)) for part in ("engine", "frontends")),
        str(sum(one["errors"] + one["wrong_length"] for one in figures)),
    ]


def _ratio(value: float | None, other: float, *, is_time: bool, form: str) -> str:
    """More than 1 is better."""
    if not value:
        return "-"
    return format(other / value if is_time else value / other, form)


def _median(several: list[dict[str, Any]], name: str) -> float | None:
    found = [one[name] for one in several if one.get(name) is not None]
    return statistics.median(found) if found else None


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"

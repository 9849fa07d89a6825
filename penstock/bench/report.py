"""From records to figures.

    TTFT   from sending a request to its first chunk with a token
    TPOT   (last chunk - first chunk) / (output tokens - 1): does not depend on how a server groups tokens
    ITL    from one chunk with tokens to the next
    E2E    from sending a request to the end of its answer

The window is the time in which every client is busy: from when the first `concurrency` requests all have their first token
until the last request of the list is sent. A closed loop's whole run also measures how it fills and how it runs dry.
"""

from __future__ import annotations

import math
from typing import Any

import numpy

from .records import Record
from .runner import Outcome
from .settings import Slo

_PERCENTILES = (50, 90, 95, 99)
_SHORTEST_WINDOW_S = 1.0
_SHOWN_ERRORS = 5
BUSY_CLIENT_SHARE = 0.8
"""From here on a client process may be what is measured."""


def make_report(outcome: Outcome, slo: Slo, turns: int) -> dict[str, Any]:
    """The figures of one load, ready for JSON: times in milliseconds where the name says so, else seconds; rates per second."""
    records = outcome.records
    good = [record for record in records if record.error is None]
    begin = min((record.start for record in records), default=0.0)
    seconds = max((record.end for record in records if record.end is not None), default=begin) - begin
    rate = outcome.load.request_rate
    is_open = rate is not None and math.isfinite(rate)
    report: dict[str, Any] = {
        "concurrency": outcome.load.concurrency,
        "request_rate": rate if is_open else None,
        "requests": len(records),
        "ok": len(good),
        "errors": len(records) - len(good),
        "first_errors": [record.error for record in records if record.error is not None][:_SHOWN_ERRORS],
        "lost_clients": outcome.lost_clients,
        "interrupted": outcome.interrupted,
        "wrong_length": sum(record.num_output != record.wanted_tokens for record in good),
        "counted_by": "usage" if all(record.has_usage for record in good) else "chunks",
        "seconds": seconds,
        **_throughput(good, seconds),
        "client_cpu_share": max(outcome.client_cpu_shares, default=0.0),
        "client_processes": len(outcome.client_cpu_shares) + len(outcome.lost_clients),
        **_latencies(good),
    }
    if is_open:
        report["late_ms"] = summary_ms([record.start - record.due for record in records if record.due is not None])
    elif outcome.load.concurrency is not None and turns == 1:
        report["window"] = window(good, outcome.load.concurrency)
    if slo != Slo():
        report["goodput"] = _goodput(good, len(records), seconds, slo)
    if any(record.num_cached is not None for record in good):
        report["prefix_cache_hit_rate"] = _hit_rate(good)
    if turns > 1:
        report["by_turn"] = [_turn(good, turn) for turn in range(turns)]
        report["prefix_cache_hit_rate_later_turns"] = _hit_rate([record for record in good if record.turn > 0])
    return report


def summary_ms(values_s: Any) -> dict[str, float] | None:
    """Mean and percentiles (linearly interpolated) in milliseconds of values in seconds; None where there are none."""
    if len(values_s) == 0:
        return None
    values_ms = 1e3 * numpy.asarray(values_s, dtype=numpy.float64)
    percentiles = numpy.percentile(values_ms, _PERCENTILES)
    named = {f"p{percentile}": float(value) for percentile, value in zip(_PERCENTILES, percentiles, strict=True)}
    return {"mean": float(values_ms.mean()), **named, "max": float(values_ms.max())}


def window(good: list[Record], concurrency: int) -> dict[str, Any] | None:
    """Output tokens/s and TTFT while every client is busy; None where a run is too short to have such a time.

    The requests that fill the clients are left out of TTFT. Tokens of a chunk count when the chunk comes.
    """
    by_start = sorted(good, key=lambda record: record.start)
    if len(by_start) <= 2 * concurrency:
        return None
    begin = max(record.first or -math.inf for record in by_start[:concurrency])
    end = by_start[-1].start
    if end - begin < _SHORTEST_WINDOW_S:
        return None
    tokens = 0.0
    for record in good:
        arrivals = arrival_times(record)
        inside = numpy.count_nonzero((begin <= arrivals) & (arrivals < end))
        tokens += float(inside) * record.num_output / max(1, record.num_chunks)
    ttft_s = [record.ttft_s for record in by_start[concurrency:]]
    return {"seconds": end - begin, "output_tokens_per_s": tokens / (end - begin), "ttft_ms": summary_ms(ttft_s)}


def arrival_times(record: Record) -> Any:
    """When each chunk with tokens came: float64, empty where none did."""
    if record.first is None:
        return numpy.empty(0)
    gaps = numpy.frombuffer(record.gaps, dtype=numpy.float32).astype(numpy.float64)
    return record.first + numpy.concatenate(([0.0], numpy.cumsum(gaps)))


def tokenizing(records: list[Record], counted: dict[str, int], num_shared: int) -> dict[str, int]:
    """What the server says of how it made tokens of prompts, and about how many it made of text that it had been sent before.

    The last prompt of a conversation has all of its text, and they have `num_shared` tokens in common: what was encoded
    beyond that was encoded again.
    """
    if "prompt_tokens_encoded" not in counted:
        return {}
    longest: dict[int, int] = {}
    for record in records:
        longest[record.index] = max(longest.get(record.index, 0), record.num_input)
    num_different = sum(longest.values()) - max(0, len(longest) - 1) * num_shared
    return {**counted, "prompt_tokens_encoded_again": max(0, counted["prompt_tokens_encoded"] - num_different)}


def _throughput(good: list[Record], seconds: float) -> dict[str, Any]:
    num_input, num_output = sum(record.num_input for record in good), sum(record.num_output for record in good)
    num_chunks = sum(record.num_chunks for record in good)

    def rate(count: int) -> float:
        return count / seconds if seconds else 0.0

    return {
        "input_tokens": num_input,
        "output_tokens": num_output,
        "output_tokens_per_s": rate(num_output),
        "total_tokens_per_s": rate(num_input + num_output),
        "requests_per_s": rate(len(good)),
        "tokens_per_chunk": num_output / num_chunks if num_chunks else None,
    }


def _latencies(good: list[Record]) -> dict[str, Any]:
    gaps = numpy.frombuffer(b"".join(record.gaps for record in good), dtype=numpy.float32)
    return {
        "ttft_ms": summary_ms([record.ttft_s for record in good]),
        "tpot_ms": summary_ms([record.tpot_s for record in good if record.tpot_s is not None]),
        "itl_ms": summary_ms(gaps),
        "e2e_ms": summary_ms([record.e2e_s for record in good]),
    }


def _goodput(good: list[Record], num_sent: int, seconds: float, slo: Slo) -> dict[str, Any]:
    """Requests that kept every limit: per second, and as a share of all that were sent, failed ones included."""
    kept = sum(_keeps(record, slo) for record in good)
    limits = {"ttft_ms": slo.ttft_ms, "tpot_ms": slo.tpot_ms, "e2e_ms": slo.e2e_ms}
    return {
        "slo": {name: limit for name, limit in limits.items() if limit is not None},
        "requests_per_s": kept / seconds if seconds else 0.0,
        "share": kept / num_sent if num_sent else 0.0,
    }


def _keeps(record: Record, slo: Slo) -> bool:
    pairs = ((record.ttft_s, slo.ttft_ms), (record.tpot_s, slo.tpot_ms), (record.e2e_s, slo.e2e_ms))
    return all(limit is None or value is None or 1e3 * value <= limit for value, limit in pairs)


def _turn(good: list[Record], turn: int) -> dict[str, Any]:
    these = [record for record in good if record.turn == turn]
    return {
        "turn": turn + 1,
        "requests": len(these),
        "input_tokens_mean": sum(record.num_input for record in these) / len(these) if these else None,
        "ttft_ms": summary_ms([record.ttft_s for record in these]),
        "prefix_cache_hit_rate": _hit_rate(these),
    }


def _hit_rate(records: list[Record]) -> float | None:
    """Share of the prompt tokens that the server had in its cache; None where it does not say."""
    told = [record for record in records if record.num_cached is not None]
    num_input = sum(record.num_input for record in told)
    return sum(record.num_cached or 0 for record in told) / num_input if num_input else None

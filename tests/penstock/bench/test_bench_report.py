"""The figures: percentiles, the window, goodput and cache hits of records made by hand."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from penstock.bench.records import Record
from penstock.bench.report import make_report, summary_ms, window
from penstock.bench.runner import Outcome
from penstock.bench.settings import Load, Slo
from penstock.bench.text_report import describe, describe_sweep


def record(start: float, first: float, gaps: list[float], **fields: Any) -> Record:
    """Gaps of quarters of a second are exact in float32."""
    last = first + sum(gaps)
    values: dict[str, Any] = {
        "index": 0,
        "turn": 0,
        "wanted_tokens": len(gaps) + 1,
        "due": None,
        "num_input": 10,
        "num_output": len(gaps) + 1,
        "has_usage": True,
        **fields,
    }
    return Record(start=start, first=first, last=last, end=last + 0.25, gaps=array("f", gaps).tobytes(), **values)


def report_of(records: list[Record], *, slo: Slo | None = None, turns: int = 1, load: Load | None = None) -> dict[str, Any]:
    load = load or Load(concurrency=1)
    outcome = Outcome(load=load, records=records, client_cpu_shares=[0.25, 0.5], lost_clients=[], interrupted=False)
    return make_report(outcome, slo or Slo(), turns)


def failed(start: float) -> Record:
    return Record(index=0, turn=0, wanted_tokens=4, start=start, due=None, end=start + 1, error="HTTP 500: no")


def test_percentiles_lie_between_neighbours() -> None:
    assert summary_ms([0.0, 1.0]) == pytest.approx({"mean": 500, "p50": 500, "p90": 900, "p95": 950, "p99": 990, "max": 1000})
    assert summary_ms([]) is None


def test_throughput_and_latencies_of_a_run() -> None:
    report = report_of([record(0.0, 0.5, [0.25, 0.25]), record(1.0, 2.0, [0.5, 0.5, 0.5])])
    assert report["seconds"] == 3.75
    assert report["output_tokens_per_s"] == pytest.approx(7 / 3.75)
    assert report["total_tokens_per_s"] == pytest.approx(27 / 3.75)
    assert report["ttft_ms"]["p50"] == 750
    assert report["tpot_ms"]["mean"] == pytest.approx(375)
    assert report["itl_ms"]["max"] == 500
    assert report["e2e_ms"]["max"] == 2750
    assert report["client_cpu_share"] == 0.5


def test_the_window_begins_with_busy_clients_and_ends_with_the_last_request() -> None:
    """Two clients: the window is 1.0 .. 4.0, between the later first token and the last start."""
    records = [
        record(0.0, 0.5, [0.5, 0.5, 0.5]),  # tokens at 0.5, then inside: 1.0, 1.5, 2.0
        record(0.0, 1.0, [1.0, 1.0]),  # all inside: 1.0, 2.0, 3.0
        record(2.25, 2.75, [0.25]),  # both inside
        record(3.25, 3.75, [0.25], num_output=4),  # 3.75 is inside and 4.0 is not; two tokens a chunk
        record(4.0, 4.5, [0.25]),
    ]
    found = window(records, 2)
    assert found is not None
    assert found["seconds"] == 3.0
    assert found["output_tokens_per_s"] == pytest.approx((3 + 3 + 2 + 2) / 3.0)
    assert found["ttft_ms"]["p50"] == 500
    assert window(records[:4], 2) is None, "too few requests"
    assert window(records, 3) is None, "too few requests for so many clients"


def test_goodput_counts_failed_requests_as_bad() -> None:
    records = [record(0.0, 0.5, [0.25]), record(0.0, 1.5, [0.25]), record(0.0, 0.5, [1.0]), failed(0.0)]
    report = report_of(records, slo=Slo(ttft_ms=600, tpot_ms=300))
    assert report["goodput"]["share"] == 0.25
    assert report["goodput"]["requests_per_s"] == pytest.approx(1 / report["seconds"])
    assert report["errors"] == 1
    assert report["first_errors"] == ["HTTP 500: no"]
    assert "GOOD" not in describe(report)
    assert "TTFT <= 600 ms, TPOT <= 300 ms" in describe(report)
    assert "1 requests failed; the first:\n    HTTP 500: no" in describe(report)


def test_conversations_are_told_by_turn() -> None:
    records = [
        record(0.0, 1.0, [0.25], turn=0, num_input=100, num_cached=0),
        record(2.0, 2.5, [0.25], turn=1, num_input=200, num_cached=150),
        record(3.0, 3.25, [0.25], turn=2, num_input=300, num_cached=300),
    ]
    report = report_of(records, turns=3)
    assert [turn["ttft_ms"]["p50"] for turn in report["by_turn"]] == [1000, 500, 250]
    assert [turn["prefix_cache_hit_rate"] for turn in report["by_turn"]] == [0.0, 0.75, 1.0]
    assert report["prefix_cache_hit_rate"] == pytest.approx(450 / 600)
    assert report["prefix_cache_hit_rate_later_turns"] == pytest.approx(450 / 500)
    assert "after turn 1        90.0%" in describe(report)


def test_an_open_loop_says_how_late_requests_were_sent() -> None:
    report = report_of([record(1.25, 2.0, [0.25], due=1.0)], load=Load(request_rate=2.0))
    assert report["late_ms"]["max"] == 250
    assert "window" not in report
    assert "2/s" in describe_sweep([report])


def test_a_report_of_nothing_is_still_one() -> None:
    assert "0 of 0 requests" in describe(report_of([]))
    assert "1 requests failed" in describe(report_of([failed(0.0)]))
    assert describe_sweep([report_of([]), report_of([failed(0.0)])]).count("\n") == 2


def test_what_may_mislead_is_remarked() -> None:
    busy = report_of([record(0.0, 0.25, [0.25], has_usage=False, num_output=2)])
    assert "more --workers" in describe(busy | {"client_cpu_share": 0.9})
    assert "chunks were counted instead" in describe(busy)
    assert "another length" in describe(report_of([record(0.0, 0.25, [0.25], wanted_tokens=9)]))


def test_a_record_survives_its_journey() -> None:
    original = record(0.0, 0.5, [0.25, 0.5], num_cached=3)
    assert Record.from_wire(list(original.to_wire())) == original

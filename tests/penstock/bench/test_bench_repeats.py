"""Several runs of a load become one report that hides nothing."""

from __future__ import annotations

from typing import Any

from penstock.bench.repeats import combine, middle


def run(speed: float, **others: Any) -> dict[str, Any]:
    return {
        "concurrency": 4,
        "requests": 10,
        "ok": 10,
        "errors": 0,
        "first_errors": [],
        "lost_clients": [],
        "interrupted": False,
        "counted_by": "usage",
        "client_cpu_share": 0.1,
        "output_tokens_per_s": speed,
        "ttft_ms": {"p50": speed / 10, "p99": speed},
        "by_turn": [{"turn": 1, "ttft_ms": {"p50": speed}}, {"turn": 2, "ttft_ms": None}],
        **others,
    }


def test_one_run_stays_as_it_is() -> None:
    only = run(5.0)
    assert combine([only]) is only


def test_figures_are_medians_with_their_range() -> None:
    runs = [run(30.0), run(10.0), run(20.0)]
    combined = combine(runs)
    assert (combined["output_tokens_per_s"], combined["concurrency"], combined["requests"]) == (20.0, 4, 30)
    assert combined["ttft_ms"] == {"p50": 2.0, "p99": 20.0}
    assert combined["by_turn"] == [{"turn": 1, "ttft_ms": {"p50": 20.0}}, {"turn": 2, "ttft_ms": None}]
    assert combined["spread"]["ttft_p50_ms"] == {"lowest": 1.0, "median": 2.0, "highest": 3.0}
    assert "tpot_p50_ms" not in combined["spread"]
    assert combined["runs"] == runs
    assert middle(runs) == 2


def test_what_went_wrong_in_one_run_is_not_hidden() -> None:
    bad = run(1.0, errors=2, ok=8, first_errors=["out of luck"], interrupted=True, counted_by="chunks", ttft_ms=None)
    combined = combine([run(10.0), bad | {"client_cpu_share": 0.9, "lost_clients": ["killed"]}, run(12.0)])
    assert (combined["errors"], combined["ok"], combined["first_errors"]) == (2, 28, ["out of luck"])
    assert combined["interrupted"]
    assert combined["lost_clients"] == ["killed"]
    assert combined["counted_by"] == "chunks"
    assert combined["client_cpu_share"] == 0.9
    assert combined["ttft_ms"] == {"p50": 1.1, "p99": 11.0}
    assert "ttft_p50_ms" not in combined["spread"]

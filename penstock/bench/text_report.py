"""A report for people: a table per load, one line per load for a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .report import BUSY_CLIENT_SHARE

_LATENCIES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "end to end"}
_COLUMNS = ("mean", "p50", "p90", "p99", "max")


def describe(report: dict[str, Any]) -> str:
    """One load, in full."""
    parts = (_outline(report), _latency_table(report), _turn_table(report), _spread_table(report), _remarks(report))
    return "\n".join(line for part in parts for line in part)


def describe_sweep(reports: list[dict[str, Any]]) -> str:
    """Several loads, a line each."""
    lines = [
        f"{'load':>12} {'req/s':>9} {'output tok/s':>13} {'in window':>10} {'TTFT p50':>10} {'p99':>10} {'TPOT p50':>9}"
        f" {'errors':>7}"
    ]
    for report in reports:
        window = report.get("window") or {}
        ttft, tpot = report["ttft_ms"] or {}, report["tpot_ms"] or {}
        lines.append(
            f"{load_label(report):>12} {report['requests_per_s']:>9.2f} {report['output_tokens_per_s']:>13,.1f}"
            f" {_number(window.get('output_tokens_per_s')):>10} {_number(ttft.get('p50')):>10} {_number(ttft.get('p99')):>10}"
            f" {_number(tpot.get('p50')):>9} {report['errors']:>7}"
        )
    return "\n".join(lines)


def load_label(report: dict[str, Any]) -> str:
    """The load in a few letters: c=64, 4/s, both, or "at once"."""
    parts = [] if report["request_rate"] is None else [f"{report['request_rate']:g}/s"]
    if report["concurrency"] is not None:
        parts.append(f"c={report['concurrency']}")
    return " ".join(parts) or "at once"


def _outline(report: dict[str, Any]) -> Iterator[str]:
    runs = f", medians of {len(report['runs'])} runs" if "runs" in report else ""
    yield f"{report['ok']:,} of {report['requests']:,} requests in {report['seconds']:.2f} s, {load_label(report)}{runs}"
    yield f"  output tokens/s       {report['output_tokens_per_s']:,.1f}"
    if report.get("window"):
        window = report["window"]
        yield (
            f"    every client busy   {window['output_tokens_per_s']:,.1f} over {window['seconds']:.1f} s, "
            f"TTFT p50 {window['ttft_ms']['p50']:.1f} ms, p99 {window['ttft_ms']['p99']:.1f} ms"
        )
    yield f"  all tokens/s          {report['total_tokens_per_s']:,.1f}"
    yield f"  requests/s            {report['requests_per_s']:.2f}"
    yield f"  tokens in, out        {report['input_tokens']:,}, {report['output_tokens']:,}"
    if "goodput" in report:
        goodput = report["goodput"]
        limits = ", ".join(f"{name.removesuffix('_ms').upper()} <= {limit:g} ms" for name, limit in goodput["slo"].items())
        yield f"  goodput               {goodput['requests_per_s']:.2f} requests/s, {goodput['share']:.1%} of them ({limits})"
    for name, words in (
        ("prefix_cache_hit_rate", "prefix-cache hits"),
        ("prefix_cache_hit_rate_later_turns", "  after turn 1"),
    ):
        if report.get(name) is not None:
            yield f"  {words:<21} {report[name]:.1%} of the prompt tokens"
    if "prompt_tokens_encoded" in report:
        encoded, reused, again = (report.get(f"prompt_tokens_{name}", 0) for name in ("encoded", "reused", "encoded_again"))
        yield f"  prompts tokenized     {encoded:,.0f} tokens, {reused:,.0f} reused; about {again:,.0f} were tokenized again"
    busiest = f"the busiest of {report['client_processes']} processes"
    yield f"  client CPU share      {report['client_cpu_share']:.0%} of a core in {busiest}"


def _latency_table(report: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"  {'ms':<12}" + "".join(f"{column:>11}" for column in _COLUMNS)
    for name, words in {**_LATENCIES, "late_ms": "sent late"}.items():
        if report.get(name) is not None:
            yield f"  {words:<12}" + "".join(f"{report[name][column]:>11,.2f}" for column in _COLUMNS)
    chunk = report["tokens_per_chunk"]
    if chunk is not None and chunk > 1.01:
        yield f"  ITL is from chunk to chunk: there were {chunk:.2f} tokens in one"


def _turn_table(report: dict[str, Any]) -> Iterator[str]:
    if "by_turn" not in report:
        return
    yield ""
    yield f"  {'turn':>4} {'requests':>9} {'tokens in':>10} {'TTFT p50':>10} {'TTFT p99':>10} {'cached':>8}"
    for turn in report["by_turn"]:
        ttft = turn["ttft_ms"] or {}
        yield (
            f"  {turn['turn']:>4} {turn['requests']:>9} {_number(turn['input_tokens_mean'], ',.0f'):>10}"
            f" {_number(ttft.get('p50')):>10} {_number(ttft.get('p99')):>10} {_number(turn['prefix_cache_hit_rate'], '.1%'):>8}"
        )


def _spread_table(report: dict[str, Any]) -> Iterator[str]:
    if "spread" not in report:
        return
    yield ""
    yield f"  {'of the runs':<34}{'lowest':>12}{'median':>12}{'highest':>12}{'spread':>9}"
    for name, found in report["spread"].items():
        width = (found["highest"] - found["lowest"]) / found["median"] if found["median"] else 0.0
        row = "".join(f"{found[column]:>12,.2f}" for column in ("lowest", "median", "highest"))
        yield f"  {name:<34}{row}{width:>9.1%}"


def _remarks(report: dict[str, Any]) -> Iterator[str]:
    if report["errors"]:
        yield f"\n  {report['errors']:,} requests failed; the first:"
        yield from (f"    {error}" for error in report["first_errors"])
    for how in report["lost_clients"]:
        yield f"\n  a client process ended early: {how}; its last requests are not in these figures"
    if report["wrong_length"]:
        yield f"\n  {report['wrong_length']:,} answers have another length than was asked for"
    if report["counted_by"] == "chunks" and report["ok"]:
        yield "\n  the server does not say how many tokens there were: chunks were counted instead, prompts not at all"
    if report["client_cpu_share"] > BUSY_CLIENT_SHARE:
        yield "\n  a client process was nearly busy all the time: more --workers, or the client is what was measured"
    if report["interrupted"]:
        yield "\n  interrupted: requests in flight are not in these figures"


def _number(value: float | None, form: str = ",.1f") -> str:
    return "-" if value is None else format(value, form)

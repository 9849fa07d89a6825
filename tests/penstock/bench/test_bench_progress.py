"""The line that says how far a load is."""

from __future__ import annotations

import io

import pytest

from penstock.bench import progress
from penstock.bench.progress import ProgressLine, describe
from penstock.bench.records import Record
from penstock.bench.runner import Progress


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def half_done() -> Progress:
    record = Record(index=0, turn=0, wanted_tokens=2, start=1.0, due=None, first=1.25, end=2.0, error="no")
    return Progress(num_total=2, started=0.0, num_in_flight=1, num_chunks=300, records=[record], num_errors=1)


def test_the_line_says_how_far_how_fast_and_what_went_wrong() -> None:
    line = describe(half_done(), 10.0)
    assert line == f"[{'#' * 10}{'.' * 10}] 1/2  1 in flight  30 chunks/s  TTFT 250 ms  1 errors  10 s"
    assert "0/2" in describe(Progress(num_total=2, started=5.0), 0.0), "before the first request"


def test_in_a_terminal_the_line_changes_in_place_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_TERMINAL_INTERVAL_S", 0.0)
    terminal = Terminal()
    line = ProgressLine(terminal, "concurrency 4")
    line.show(half_done())
    line.show(half_done())
    line.clear()
    shown = terminal.getvalue()
    assert shown.count("\r\x1b[Kconcurrency 4  [") == 2
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown


def test_in_a_log_there_are_whole_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LOG_INTERVAL_S", 0.0)
    log = io.StringIO()
    line = ProgressLine(log, "concurrency 4")
    line.show(half_done())
    line.clear()
    assert log.getvalue().startswith("concurrency 4  [")
    assert log.getvalue().endswith("s\n")
    monkeypatch.setattr(progress, "_LOG_INTERVAL_S", 1000.0)
    quiet = io.StringIO()
    ProgressLine(quiet, "concurrency 4").show(half_done())
    assert quiet.getvalue() == ""

"""Progress is a bar on a terminal and lines elsewhere."""

from __future__ import annotations

import io

import pytest

from penstock.engine import progress
from penstock.engine.progress import ByteProgress, format_bytes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_in_bytes() -> None:
    terminal = Terminal()
    with ByteProgress("Loading", 2048, terminal) as bar:
        bar.advance(1024)
        bar.advance(1024)
    assert "\rLoading:" in terminal.getvalue()
    assert "2.00k" in terminal.getvalue()
    assert terminal.getvalue().endswith("Loading: 2.0 KiB in 0.0 s\n")


def test_a_file_gets_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO()
    with ByteProgress("Loading", 4096, lines) as bar:
        bar.advance(1024)
        monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
        bar.advance(1024)
    assert lines.getvalue().splitlines() == ["Loading: 2.0 KiB of 4.0 KiB", "Loading: 2.0 KiB in 0.0 s"]


def test_a_failure_is_not_reported_as_done() -> None:
    lines = io.StringIO()
    with pytest.raises(ValueError, match="broken"), ByteProgress("Loading", 4096, lines):
        raise ValueError("broken")
    assert lines.getvalue() == ""


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 10, "1.5 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (141 << 30, "141.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_bytes_are_written_for_people(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text

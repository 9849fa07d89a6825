from __future__ import annotations

import io
from pathlib import Path
from typing import TextIO, cast

from penstock.log_stream import SteadyStream


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def test_what_is_written_arrives(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        print("a line", file=cast(TextIO, SteadyStream(file)), flush=True)
    assert (tmp_path / "log").read_text() == "a line\n"


def test_a_stream_that_fails_costs_the_line_alone() -> None:
    stream = cast(TextIO, SteadyStream(FullDisk()))
    print("a line", file=stream, flush=True)
    assert not stream.isatty()


def test_without_a_stream_nothing_happens() -> None:
    stream = cast(TextIO, SteadyStream(None))
    print("a line", file=stream, flush=True)
    assert not stream.isatty()

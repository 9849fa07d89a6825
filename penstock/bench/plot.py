"""The figures as a picture. matplotlib is an optional dependency: `pip install 'penstock[bench]'`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy

from .report import arrival_times
from .runner import Outcome
from .settings import BenchError
from .text_report import load_label

_SIZE_INCHES = (11, 7.5)
_DPI = 120
_BINS = 100
_HEADROOM = 1.1


def check_plot(path: Path) -> None:
    """BenchError where no plot can be made, before anything is measured for it."""
    if path.suffix.lower() != ".png":
        raise BenchError(f"--plot writes a PNG: {path} should end in .png")
    if not path.absolute().parent.is_dir():
        raise BenchError(f"--plot: there is no directory {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError("--plot needs matplotlib: pip install 'penstock[bench]'")


def draw(path: Path, title: str, reports: list[dict[str, Any]], outcomes: list[Outcome]) -> None:
    """One load: how its figures are distributed, and tokens/s over time. A sweep: figures over the load."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = list(figure.subplots(2, 2).flat)
    if len(reports) == 1:
        _draw_one(panels, outcomes[0])
    else:
        _draw_sweep(panels, reports)
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.savefig(path, format="png")


def _draw_one(panels: Any, outcome: Outcome) -> None:
    good = [record for record in outcome.records if record.error is None]
    values = {
        "TTFT, ms": [record.ttft_s for record in good],
        "TPOT, ms": [record.tpot_s for record in good if record.tpot_s is not None],
        "end to end, ms": [record.e2e_s for record in good],
    }
    for panel, (name, values_s) in zip(panels, values.items(), strict=False):
        ordered = numpy.sort(1e3 * numpy.asarray(values_s, dtype=numpy.float64))
        panel.plot(ordered, 100 * (numpy.arange(len(ordered)) + 1) / max(1, len(ordered)))
        panel.set(xlabel=name, ylabel="% of requests", ylim=(0, 100))
    arrivals = numpy.concatenate([arrival_times(record) for record in good]) if good else numpy.empty(0)
    panel = panels[3]
    if len(arrivals) > 1:
        weights = numpy.concatenate([numpy.full(record.num_chunks, record.num_output / record.num_chunks) for record in good])
        counts, edges = numpy.histogram(arrivals - min(record.start for record in good), bins=_BINS, weights=weights)
        panel.step(edges[:-1], counts / numpy.diff(edges), where="post")
    panel.set(xlabel="seconds", ylabel="output tokens/s")
    _from_zero(panel)


def _draw_sweep(panels: Any, reports: list[dict[str, Any]]) -> None:
    labels = [load_label(report) for report in reports]
    places = range(len(reports))
    series = (
        ("output tokens/s", [("whole run", _column(reports, "output_tokens_per_s")), ("window", _window(reports))]),
        ("TTFT, ms", [("p50", _column(reports, "ttft_ms", "p50")), ("p99", _column(reports, "ttft_ms", "p99"))]),
        ("TPOT, ms", [("p50", _column(reports, "tpot_ms", "p50")), ("p99", _column(reports, "tpot_ms", "p99"))]),
    )
    for panel, (name, lines) in zip(panels, series, strict=False):
        for label, line in lines:
            panel.plot(places, line, marker="o", label=label)
        panel.set_xticks(list(places), labels)
        panel.set(ylabel=name)
        _from_zero(panel)
        panel.legend()
    panel = panels[3]
    speed = [1e3 / tpot if tpot else numpy.nan for tpot in _column(reports, "tpot_ms", "p50")]
    throughput = _column(reports, "output_tokens_per_s")
    panel.plot(speed, throughput, marker="o")
    for place, label in enumerate(labels):
        if numpy.isfinite(speed[place]):
            panel.annotate(label, (speed[place], throughput[place]))
    panel.set(xlabel="tokens/s of one request (median)", ylabel="output tokens/s")
    _from_zero(panel, both=True)


def _from_zero(panel: Any, *, both: bool = False) -> None:
    """The y axis, or both, from 0 to a little above the largest value."""
    highest, widest = panel.dataLim.ymax, panel.dataLim.xmax
    if highest > 0:
        panel.set_ylim(0, _HEADROOM * highest)
    if both and widest > 0:
        panel.set_xlim(0, _HEADROOM * widest)


def _column(reports: list[dict[str, Any]], name: str, part: str | None = None) -> list[float]:
    """A figure of each load, NaN where there is none."""
    return [value if part is None else (value or {}).get(part, numpy.nan) for value in (report[name] for report in reports)]


def _window(reports: list[dict[str, Any]]) -> list[float]:
    return [(report.get("window") or {}).get("output_tokens_per_s", numpy.nan) for report in reports]

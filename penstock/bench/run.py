"""The command: asks the server who it is, runs the loads one after the other, prints and writes what came out."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..flags import USAGE_ERROR
from . import probe, repeats, server_metrics
from .flags import BenchOptions, parse
from .progress import ProgressLine
from .report import make_report, tokenizing
from .runner import Outcome, Progress, Runner, interrupted_by
from .settings import CHAT, BenchError, Load, Work
from .text_report import describe, describe_sweep

FAILED = 1
INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """`penstock bench` with these arguments; returns the exit code."""
    try:
        options = parse(arguments, os.environ)
        _check_outputs(options)
        return asyncio.run(_Bench(options).run())
    except BenchError as error:
        print(f"penstock bench: error: {error}", file=sys.stderr)
        return USAGE_ERROR


class _Bench:
    """One command."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        self._target = options.target
        self._works = options.works
        self._reports: list[dict[str, Any]] = []
        self._outcomes: list[Outcome] = []
        """Of each load; of several runs the middle one."""

    async def run(self) -> int:
        stop = interrupted_by(asyncio.get_running_loop())
        probing = asyncio.create_task(self._ask_server())
        if not await _done_before(probing, stop):
            return INTERRUPTED
        for place, (load, work) in enumerate(zip(self._options.loads, self._works, strict=True)):
            await self._run_load(load, replace(work, variant=f"-load-{place}" if place else ""), stop)
            if stop.is_set():
                break
        if len(self._options.loads) > 1:
            print(describe_sweep(self._reports))
        try:
            self._write()
        except OSError as error:
            raise BenchError(f"the results could not be written: {error}") from None
        if stop.is_set():
            return INTERRUPTED
        return FAILED if any(report["errors"] or report["lost_clients"] for report in self._reports) else 0

    async def _ask_server(self) -> None:
        if not self._target.model:
            self._target = replace(self._target, model=await probe.model_name(self._target.base_url, self._target.api_key))
        if self._target.endpoint == CHAT:
            measured = await probe.measure_texts(self._target, self._works[0])
            per_word, per_tool = measured.tokens_per_word, measured.tokens_per_tool
            self._works = tuple(replace(work, tokens_per_word=per_word, tokens_per_tool=per_tool) for work in self._works)

    async def _run_load(self, load: Load, work: Work, stop: asyncio.Event) -> None:
        """The warm-up, then every run of one load. After Ctrl-C there are fewer runs, or none."""
        if self._options.num_warmups:
            warm_up = replace(work, num_prompts=self._options.num_warmups, variant=f"{work.variant}-warmup")
            outcome = await self._run_once(f"{load}, warm-up", load, warm_up, stop)
            _complain_of_warm_up(outcome)
        outcomes: list[Outcome] = []
        runs: list[dict[str, Any]] = []
        while len(runs) < self._options.num_runs and not stop.is_set():
            number = len(runs) + 1
            label = f"{load}, run {number}" if self._options.num_runs > 1 else str(load)
            before = await self._read_counters()
            this_run = replace(work, variant=f"{work.variant}-run-{number}") if number > 1 else work
            outcome = await self._run_once(label, load, this_run, stop)
            counted = server_metrics.increase(before, await self._read_counters())
            outcomes.append(outcome)
            tokenized = tokenizing(outcome.records, counted, work.shared_prefix_tokens)
            runs.append(make_report(outcome, self._options.slo, work.turns) | tokenized)
        if runs:
            self._outcomes.append(outcomes[repeats.middle(runs)])
            self._reports.append(repeats.combine(runs))
            print(f"{describe(self._reports[-1])}\n", flush=True)

    async def _read_counters(self) -> server_metrics.Counters:
        return await server_metrics.read_settled(self._target.base_url, self._target.api_key)

    async def _run_once(self, label: str, load: Load, work: Work, stop: asyncio.Event) -> Outcome:
        line = ProgressLine(sys.stderr, label)

        def on_progress(progress: Progress) -> None:
            if not self._options.quiet:
                line.show(progress)

        outcome = await Runner(self._target, work, load, self._options.num_workers).run(stop, on_progress)
        if not self._options.quiet:
            line.clear()
        return outcome

    def _write(self) -> None:
        if self._options.json_path is not None:
            self._options.json_path.write_text(json.dumps(self._as_json(), indent=2, allow_nan=False) + "\n")
        if self._options.plot_path is not None and self._reports:
            from .plot import draw

            title = f"{self._target.model}, {self._options.works[0].lengths}, {self._target.endpoint}"
            draw(self._options.plot_path, title, self._reports, self._outcomes)

    def _as_json(self) -> dict[str, Any]:
        target: dict[str, Any] = {name: value for name, value in asdict(self._target).items() if name != "api_key"}
        works = [asdict(work) for work in self._works]
        return {
            "penstock": __version__,
            "python": platform.python_version(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "target": target,
            "warmup": self._options.num_warmups,
            "repeat": self._options.num_runs,
            "loads": [{"work": work, **report} for work, report in zip(works, self._reports, strict=False)],
        }


def _complain_of_warm_up(outcome: Outcome) -> None:
    errors = [record.error for record in outcome.records if record.error is not None]
    if errors:
        print(f"penstock bench: {len(errors):,} requests of the warm-up failed; the first: {errors[0]}", file=sys.stderr)


async def _done_before(task: asyncio.Task[None], stop: asyncio.Event) -> bool:
    """Waits for the task and passes its error on; False if `stop` was set first."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for waiting in (task, stopping):
            waiting.cancel()


def _check_outputs(options: BenchOptions) -> None:
    """What would fail after the measuring fails before it."""
    if options.plot_path is not None:
        from .plot import check_plot

        check_plot(options.plot_path)
    if options.json_path is not None:
        _check_writable(options.json_path)


def _check_writable(path: Path) -> None:
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise BenchError(f"--json {path}: {error.strerror}") from None

"""Penstock over HTTP on one GPU: the rows of `http_rows` by an outside load generator, in a table beside vLLM and the goals.

    python -m scripts.bench_http MODEL_DIR... --loadgen LOADGEN.py [--short] [--budget-s 900] [-- flags of penstock serve]

MODEL_DIR has a config.json of a model in the table and a tokenizer; weights are made up. One server for each model; models and
rows in the order of the table, each model with its share of the time that is left, and what no longer fits is skipped and
named. A JSON line for each run goes to --out, the table (medians of the runs) to stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .http_rows import MODELS, ROWS, Model, Row
from .http_table import table
from .served import Served, serving

MARGIN = 2.0
"""A row is begun when there is time for it at half the speed that is aimed at."""
RUN_OVERHEAD_S = 8.0
"""Of the load generator: its processes start and make prompts."""
START_S = 20.0
"""What is kept free for a server's start."""
FEWEST_SEQUENCES = 256
WARM_UP = ("--lengths", "64x48")
WARM_UP_ROUNDS = 2


@dataclass
class Clock:
    """The time that is left."""

    end_s: float
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, seconds: float) -> Clock:
        """So many seconds from this moment."""
        return cls(time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """May be negative."""
        return self.end_s - time.monotonic()


def identify(model_dir: Path) -> Model:
    """Which model of the table it is, by its shape."""
    config = json.loads((model_dir / "config.json").read_text())
    shape = tuple(config.get(name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    for model in MODELS:
        if shape == (model.hidden_size, model.num_layers, model.vocab_size):
            return model
    raise SystemExit(f"{model_dir}: no row of the table is for a model of this shape {shape}")


def in_order(model_dirs: Sequence[Path]) -> list[tuple[Path, Model]]:
    """The model of the most important row first."""
    order = {row.model: place for place, row in reversed(list(enumerate(ROWS)))}
    return sorted(((path, identify(path)) for path in model_dirs), key=lambda pair: order[pair[1].name])


class Bench:
    """One command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._num_runs = 0
        self.runs: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    def run_model(self, model_dir: Path, model: Model, clock: Clock) -> None:
        """All rows of a model, then all again, as long as there is time."""
        rows = [row for row in ROWS if row.model == model.name]
        if clock.left_s < START_S + min(map(self._needed_s, rows)):
            self.skipped += [row.name for row in rows]
            return
        sequences = str(max(FEWEST_SEQUENCES, *(row.clients for row in rows)))
        flags = ["--load-format", "dummy", "--max-model-len", "4096", "--max-num-seqs", sequences, *self._arguments.flags]
        with serving(model_dir, flags, min(clock.left_s, self._arguments.start_limit_s)) as served:
            _tell(f"{model.name}: ready after {served.ready_s:.1f} s")
            self._warm_up(served, model, rows[0], clock)
            self.write({"server": model.name, "ready_s": round(served.ready_s, 2), "flags": flags, "log": served.log_lines()})
            for number, row in ((n, row) for n in range(self._arguments.repeat) for row in rows):
                if clock.left_s < self._needed_s(row):
                    self.skipped.append(f"{row.name}, run {number + 1}")
                else:
                    self._run_row(served, model, row, clock)

    def _needed_s(self, row: Row) -> float:
        return RUN_OVERHEAD_S + row.seconds(row.requests(short=self._arguments.short), MARGIN)

    def _warm_up(self, served: Served, model: Model, row: Row, clock: Clock) -> None:
        flags = (*WARM_UP, "-n", str(WARM_UP_ROUNDS * row.clients), "--concurrency", str(row.clients))
        self._load(served, model, flags, clock.left_s)

    def _run_row(self, served: Served, model: Model, row: Row, clock: Clock) -> None:
        num_requests = row.requests(short=self._arguments.short)
        flags = ("--lengths", row.lengths, "-n", str(num_requests), "--concurrency", str(row.clients))
        cpu_before, began_s = served.cpu_s(), time.monotonic()
        found = self._load(served, model, (*flags, "--shared-prefix", str(row.shared_prefix)), clock.left_s)
        wall_s = time.monotonic() - began_s
        cpu = {part: (seconds - cpu_before.get(part, 0.0)) / wall_s for part, seconds in served.cpu_s().items()}
        if found is None:
            self.skipped.append(f"{row.name}: it failed")
            return
        run = {"row": row.name, "model": row.model, "clients": row.clients, "shared_prefix": row.shared_prefix}
        run |= {"short": self._arguments.short, "cpu_cores": {part: round(share, 2) for part, share in cpu.items()}}
        run["figures"] = {name: value for name, value in found.items() if name not in ("label", "kind")}
        self.runs.append(run)
        self.write(run)
        _tell(f"{row.name}: {json.dumps(run['figures'])}")

    def _load(self, served: Served, model: Model, flags: Sequence[str], limit_s: float) -> dict[str, Any] | None:
        """One run of the load generator, with prompts that no run before has sent."""
        self._num_runs += 1
        command = [sys.executable, self._arguments.loadgen, "--url", served.url, "--model", served.model_name]
        command += ["--vocab", str(model.vocab_size), "--seed", str(self._num_runs), "--timeout", str(limit_s), *flags]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s + RUN_OVERHEAD_S, check=False)
            figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
            _tell(f"the load generator failed: {error!r}\n{getattr(error, 'stderr', None) or ''}")
            return None
        return figures

    def write(self, line: dict[str, Any]) -> None:
        """Appends to the file of results."""
        if self._arguments.out is not None:
            with self._arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


def environment() -> dict[str, Any]:
    """What figures depend on beside the code."""
    import torch
    import triton  # type: ignore[import-untyped, unused-ignore]

    [cpu, *_] = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] or ["?"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    return {"gpu": gpu, "cpu": cpu.partition(":")[2].strip(), **versions}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shares(models: list[tuple[Path, Model]], budget_s: float) -> Iterator[tuple[Path, Model, Clock]]:
    """Each model with an equal share of what those before it have left over."""
    whole = Clock.of(budget_s)
    for place, (model_dir, model) in enumerate(models):
        yield model_dir, model, Clock.of(whole.left_s / (len(models) - place))


def main() -> int:
    """Measures and prints; exit code 1 where nothing was measured or a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dirs", type=Path, nargs="+", metavar="MODEL_DIR")
    parser.add_argument("--loadgen", required=True, help="the load generator's program")
    parser.add_argument("--short", action="store_true", help="fewer requests: a first look, no figure to quote")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each row")
    parser.add_argument("--budget-s", type=float, default=1800.0, help="seconds for everything")
    parser.add_argument("--start-limit-s", type=float, default=120.0, help="seconds for a server's start")
    parser.add_argument("--out", type=Path, help="file of JSON lines, appended to")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:cut])
    arguments.flags = given[cut + 1 :]
    bench = Bench(arguments)
    models = in_order(arguments.model_dirs)
    about = {"environment": environment()}
    bench.write(about)
    for model_dir, model, clock in _shares(models, arguments.budget_s):
        try:
            bench.run_model(model_dir, model, clock)
        except (OSError, RuntimeError) as error:
            bench.skipped.append(f"{model.name}: {error}")
    print(json.dumps(about))
    print(table(bench.runs, ROWS))
    for name in bench.skipped:
        print(f"skipped: {name}")
    return int(not bench.runs or any(run["figures"]["errors"] for run in bench.runs))


if __name__ == "__main__":
    sys.exit(main())

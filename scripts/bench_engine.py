"""The engine without HTTP, on fixed lists of lengths: output tokens per second, and the time of a decode step.

    python -m scripts.bench_engine MODEL_DIR --out results.jsonl
    python -m scripts.bench_engine MODEL_DIR --parts sharegpt,decode --repeat 3
    python -m scripts.bench_engine MODEL_DIR --profile 32
    python -m scripts.bench_engine MODEL_DIR --profile prefill

Weights are made up (--load-format dummy), prompts are random token ids without a common prefix, tokens are greedy and ends of
sequence ignored. One JSON line per part and repetition, medians in a table. Parts: sharegpt (1,000 requests at once), uniform
(256 requests, 100 to 1024 tokens in and out), prefill (500 of 1024 in, 128 out), and decode: the time between two steps
of 1, 32, 128 and 256 requests with about 1,000 tokens of context. --profile prints where the time of steps goes, kernel
by kernel, and how long the card idles between steps.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penstock.bench.lengths import draw
from penstock.engine.build import load_engine
from penstock.engine.config import EngineConfig
from penstock.engine.core import EngineCore
from penstock.ipc.messages import FinishReason, Sampling, Submit

THROUGHPUT_PARTS = {"sharegpt": 1000, "uniform": 256, "prefill": 500}
DECODE_BATCHES = (1, 32, 128, 256)
DECODE_CONTEXT_TOKENS = 1064
"""Mean context in the middle of a decode part."""
DECODE_STEPS = 100
SETTLING_STEPS = 16
MAX_CAPTURE_S = 20.0
"""Of capturing graphs before anything is measured; what is missing then is captured as steps want it."""
LOWEST_TOKEN_ID, HIGHEST_TOKEN_ID = 256, 99_999


@dataclass(frozen=True)
class Result:
    """One part, once."""

    part: str
    num_requests: int
    seconds: float
    output_tokens: int
    output_tokens_per_s: float
    step_ms: float | None
    """Of decode parts: wall time per step, all requests decoding."""
    num_steps: int
    num_preemptions: int


class Bench:
    """An engine and the work it gets."""

    def __init__(self, core: EngineCore, vocab_size: int) -> None:
        self.core = core
        self._highest_id = min(vocab_size - 1, HIGHEST_TOKEN_ID)
        self._num_submitted = 0
        self._num_aborted = 0

    def submit(self, pairs: list[tuple[int, int]]) -> list[int]:
        """Requests of (prompt tokens, output tokens); their keys."""
        first = self._num_submitted + 1
        for num_prompt, num_output in pairs:
            self._num_submitted += 1
            numbers = random.Random(f"prompt-{self._num_submitted}")
            prompt = array("i", [numbers.randint(LOWEST_TOKEN_ID, self._highest_id) for _ in range(num_prompt)])
            sampling = Sampling(seed=self._num_submitted, temperature=0.0, max_tokens=num_output, ignore_eos=True)
            submit = Submit(request_id=self._num_submitted, token_ids=prompt.tobytes(), num_output_tokens=0, sampling=sampling)
            self.core.submit(self._num_submitted, submit)
        return list(range(first, self._num_submitted + 1))

    def finish(self) -> None:
        """Steps until all is done; raises RuntimeError where a request ended otherwise than by its length."""
        while self.core.has_work:
            self.core.step()
        finished = self.core.scheduler.metrics.finished
        if finished[FinishReason.LENGTH] != self._num_submitted - self._num_aborted:
            raise RuntimeError(f"of {self._num_submitted} requests not all came to their end: {dict(finished)}")

    def throughput(self, part: str) -> Result:
        """All requests of a part at once."""
        pairs = draw(part, THROUGHPUT_PARTS[part], 0)
        metrics = self.core.scheduler.metrics
        before, preempted, steps = metrics.num_generation_tokens, metrics.num_preemptions, self.core.num_completed_steps
        start_s = time.perf_counter()
        self.submit(pairs)
        self.finish()
        seconds = time.perf_counter() - start_s
        tokens = metrics.num_generation_tokens - before
        if tokens != sum(num_output for _, num_output in pairs):
            raise RuntimeError(f"{part}: {tokens} tokens came out")
        return Result(
            part=part,
            num_requests=len(pairs),
            seconds=seconds,
            output_tokens=tokens,
            output_tokens_per_s=tokens / seconds,
            step_ms=None,
            num_steps=self.core.num_completed_steps - steps,
            num_preemptions=metrics.num_preemptions - preempted,
        )

    def decode(self, batch: int) -> Result:
        """`batch` requests that decode side by side."""
        keys = self.start_decodes(batch)
        metrics = self.core.scheduler.metrics
        before, steps, start_s = metrics.num_generation_tokens, self.core.num_completed_steps, time.perf_counter()
        while metrics.num_generation_tokens < before + batch * DECODE_STEPS:
            self.core.step()
        seconds = time.perf_counter() - start_s
        tokens = metrics.num_generation_tokens - before
        num_steps = self.core.num_completed_steps - steps
        self.end(keys)
        return Result(
            part=f"decode {batch}",
            num_requests=batch,
            seconds=seconds,
            output_tokens=tokens,
            output_tokens_per_s=tokens / seconds,
            step_ms=1e3 * seconds * batch / tokens,
            num_steps=num_steps,
            num_preemptions=0,
        )

    def start_decodes(self, batch: int) -> list[int]:
        """Keys of requests that all decode by now, with nearly DECODE_CONTEXT_TOKENS of context, and will for long."""
        metrics = self.core.scheduler.metrics
        first = metrics.num_generation_tokens
        # Those that are prefilled first decode while the others are: about so many steps, half of them on average.
        num_prefill_steps = batch * DECODE_CONTEXT_TOKENS // 2048
        num_prompt = DECODE_CONTEXT_TOKENS - SETTLING_STEPS - DECODE_STEPS // 2 - num_prefill_steps // 2
        keys = self.submit([(num_prompt, 4 * (DECODE_STEPS + batch))] * batch)
        while self.core.scheduler.num_waiting or metrics.num_generation_tokens < first + batch * SETTLING_STEPS:
            self.core.step()
        return keys

    def end(self, keys: list[int]) -> None:
        """Aborts requests that have served their purpose."""
        for key in keys:
            self.core.abort(key)
        while self.core.has_work:
            self.core.step()
        self._num_aborted += len(keys)

    def warm_up(self) -> None:
        """Compiles and captures what the parts use."""
        end_s = time.perf_counter() + MAX_CAPTURE_S
        while self.core.on_idle() and time.perf_counter() < end_s:
            pass
        for batch in DECODE_BATCHES:
            self.submit([(64 + batch, 24)] * batch)
            self.finish()
        self.submit(draw("sharegpt", 300, 1))
        self.finish()


def run_parts(bench: Bench, parts: list[str], repeat: int) -> Iterator[Result]:
    """Every part `repeat` times, one after another so that a drift of the machine hits all of them."""
    for _ in range(repeat):
        for part in parts:
            if part == "decode":
                yield from (bench.decode(batch) for batch in DECODE_BATCHES)
            else:
                yield bench.throughput(part)


def print_table(results: list[Result]) -> None:
    """Medians and spreads."""
    print(f"{'part':<12} {'out tok/s':>10} {'step ms':>8} {'spread':>7} {'steps':>7} {'preempted':>9}")
    for part in dict.fromkeys(result.part for result in results):
        own = [result for result in results if result.part == part]
        rates = sorted(result.output_tokens_per_s for result in own)
        step_ms = [result.step_ms for result in own if result.step_ms is not None]
        step = f"{statistics.median(step_ms):8.3f}" if step_ms else " " * 8
        spread = (rates[-1] - rates[0]) / statistics.median(rates)
        print(
            f"{part:<12} {statistics.median(rates):>10,.0f} {step} {spread:>7.1%} {own[-1].num_steps:>7} "
            f"{max(result.num_preemptions for result in own):>9}"
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory with a config.json")
    parser.add_argument("--parts", default="sharegpt,uniform,prefill,decode")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON lines are appended here")
    parser.add_argument("--profile", metavar="WHAT", help="profile decodes of so many requests, or a part, instead")
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--no-async-scheduling", action="store_true")
    return parser.parse_args(arguments)


def versions() -> dict[str, Any]:
    """What the figures belong to."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if torch.cuda.is_available():
        import triton  # type: ignore[import-untyped, unused-ignore]

        found |= {"triton": triton.__version__, "device": torch.cuda.get_device_name()}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for."""
    flags = parse(arguments)
    config = EngineConfig(
        model=flags.model,
        load_format="dummy",
        max_model_len=flags.max_model_len,
        max_num_seqs=flags.max_num_seqs,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        enable_prefix_caching=False,
        enforce_eager=flags.enforce_eager,
        async_scheduling=not flags.no_async_scheduling,
    )
    loaded = load_engine(config)
    bench = Bench(loaded.core, loaded.facts.vocab_size)
    bench.warm_up()
    if flags.profile is not None:
        from scripts.profile_step import profile_work

        profile_work(bench, flags.profile, THROUGHPUT_PARTS.get(flags.profile, 0))
        return 0
    results = []
    for result in run_parts(bench, flags.parts.split(","), flags.repeat):
        results.append(result)
        if flags.out is not None:
            line = {"model": Path(flags.model).name, **asdict(result), **versions()}
            with flags.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(f"{Path(flags.model).name}: {versions()}")
    print_table(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""CPU time of the engine's step with a runner that costs nothing: planning, settling, outboxes and encoding, without sockets.

    python scripts/bench_scheduler.py [--requests 1 32 256 1024]

Prints, for each number of requests that decode at once: microseconds of a steady step, blocks and prefix cache included, and
what a request of 220 prompt and 200 output tokens costs from its submission to its end besides its share of those steps.
"""

from __future__ import annotations

import argparse
import gc
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penstock.engine.admission import Limits
from penstock.engine.core import EngineCore
from penstock.engine.kv_blocks import KVBlocks
from penstock.engine.leases import Leases
from penstock.engine.metrics import EngineMetrics
from penstock.engine.pacing import OneStep
from penstock.engine.plan import NO_TOKEN, StepPlan, StepResult
from penstock.engine.scheduler import Scheduler
from penstock.ipc.codec import encode
from penstock.ipc.messages import Sampling, Submit, ToFrontend

VOCAB_SIZE = 128_256
NUM_PROMPT_TOKENS = 220
NUM_OUTPUT_TOKENS = 200
STEP_S = 0.005
"""What a step takes by the engine's clock, so that outboxes are flushed after every step."""


@dataclass
class Done:
    """A step that is done."""

    result: StepResult

    def wait(self) -> StepResult:
        return self.result


class FreeRunner:
    """Says token 7 everywhere, at once."""

    def launch(self, plan: StepPlan) -> Done:
        token_ids = np.full((plan.num_decode_steps, plan.num_rows), 7, np.int32)
        for row, chunk in enumerate(plan.chunks, len(plan.decode_slots)):
            if chunk.samples_position is None:
                token_ids[:, row] = NO_TOKEN
        return Done(StepResult(token_ids=token_ids))


class Loop:
    """The server's loop with frontends that read at once."""

    def __init__(self, num_requests: int, num_frontends: int) -> None:
        self.now_s = 0.0
        limits = Limits(
            vocab_size=VOCAB_SIZE,
            max_model_len=8192,
            max_num_seqs=num_requests,
            max_num_batched_tokens=8192,
            eos_token_ids=frozenset((128_001, 128_008, 128_009)),
        )
        blocks = KVBlocks(
            num_blocks=num_requests * 160, block_size=16, max_step_tokens=limits.max_num_batched_tokens, caches_prefixes=True
        )
        scheduler = Scheduler(limits, blocks, EngineMetrics(), self.clock, run_ahead=OneStep())
        self.core = EngineCore(scheduler, FreeRunner(), overlap=True)
        self.leases = Leases(b"benchmrk")
        for number in range(num_frontends):
            self.leases.greet(b"frontend:%08d" % number, 0.0)
        self.num_open = 0
        self.num_bytes = 0
        self._random = np.random.default_rng(0)
        self._num_submitted = 0

    def clock(self) -> float:
        return self.now_s

    def submits(self, num_requests: int, num_output_tokens: int) -> list[Submit]:
        """Requests with prompts of their own."""
        made = []
        for _ in range(num_requests):
            self._num_submitted += 1
            prompt = array("i", self._random.integers(0, 128_000, NUM_PROMPT_TOKENS).tolist())
            sampling = Sampling(seed=1, max_tokens=num_output_tokens)
            made.append(
                Submit(request_id=self._num_submitted, token_ids=prompt.tobytes(), num_output_tokens=0, sampling=sampling)
            )
        return made

    def submit(self, submit: Submit) -> None:
        leases = list(self.leases)
        lease = leases[submit.request_id % len(leases)]
        handle = lease.handle(submit.request_id)
        self.core.submit(handle, submit, handle)
        lease.open_requests.add(submit.request_id)

    def step(self) -> int:
        """One turn of the loop; how many requests ended."""
        self.now_s += STEP_S
        num_before = self.core.scheduler.metrics.finished.total()
        self.leases.deliver(self.core.step())
        for lease in self.leases:
            lease.outbox.flush(self._send, self.now_s, at_once=False)
        return self.core.scheduler.metrics.finished.total() - num_before

    def _send(self, message: ToFrontend) -> None:
        self.num_bytes += len(encode(message))


def steady_step_us(num_requests: int, num_frontends: int) -> float:
    """The best of ten means over 64 steps, while all requests decode."""
    loop = Loop(num_requests, num_frontends)
    for submit in loop.submits(num_requests, 2000):
        loop.submit(submit)
    while loop.core.scheduler.num_waiting:
        loop.step()
    for _ in range(64):
        loop.step()
    return min(_time_us(loop.step, 64) for _ in range(10))


def _time_us(call: Callable[[], object], times: int) -> float:
    begin_s = time.process_time()
    for _ in range(times):
        call()
    return 1e6 * (time.process_time() - begin_s) / times


def request_us(num_requests: int, num_frontends: int, step_us: float) -> float:
    """What a request costs beside its steps, with a new one for each that ends and their ends spread evenly."""
    loop = Loop(num_requests, num_frontends)
    for number, submit in enumerate(loop.submits(num_requests, NUM_OUTPUT_TOKENS)):
        loop.submit(submit)
        if number % max(1, num_requests // NUM_OUTPUT_TOKENS) == 0:
            loop.step()
    num_timed = 4 * max(num_requests, 32)
    waiting = loop.submits(num_timed, NUM_OUTPUT_TOKENS)
    num_steps = 0
    begin_s = time.process_time()
    while waiting:
        num_steps += 1
        for _ in range(min(loop.step(), len(waiting))):
            loop.submit(waiting.pop())
    total_us = 1e6 * (time.process_time() - begin_s)
    return (total_us - num_steps * step_us) / num_timed


def main() -> None:
    parser = argparse.ArgumentParser(description="Host time of the engine's step with a runner that costs nothing.")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 32, 256, 1024])
    parser.add_argument("--frontends", type=int, default=1)
    arguments = parser.parse_args()
    gc.collect()
    gc.freeze()
    gc.disable()
    print("requests   us/step   us/request besides")
    for num_requests in arguments.requests:
        step_us = steady_step_us(num_requests, arguments.frontends)
        besides_us = request_us(num_requests, arguments.frontends, step_us)
        print(f"{num_requests:8d} {step_us:9.1f} {besides_us:12.1f}", flush=True)


if __name__ == "__main__":
    main()

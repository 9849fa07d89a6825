"""An engine over the truthful toy, put together without files: for tests of everything around the model."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from penstock.engine.admission import Limits
from penstock.engine.core import EngineCore
from penstock.engine.kv_blocks import KVBlocks
from penstock.engine.metrics import EngineMetrics
from penstock.engine.outputs import RequestOutput
from penstock.engine.pacing import PromptBudget, RunAhead
from penstock.engine.plan import Runner
from penstock.engine.scheduler import Scheduler
from penstock.engine.step_draft import LaunchedStep
from penstock.engine.toy_config import ToyConfig
from penstock.engine.toy_runner import ToyRunner
from penstock.ipc.messages import FinishReason, Sampling, Submit

BLOCK_SIZE = 4


def make_scheduler(
    *,
    num_blocks: int = 100,
    block_size: int = BLOCK_SIZE,
    windows: Sequence[int | None] = (None,),
    caches_prefixes: bool = True,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    max_model_len: int = 200,
    vocab_size: int = 512,
    eos_token_ids: Iterable[int] = (),
    prompt_budget: PromptBudget | None = None,
    run_ahead: RunAhead | None = None,
) -> Scheduler:
    """A scheduler over an empty pool."""
    limits = Limits(
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        eos_token_ids=frozenset(eos_token_ids),
    )
    blocks = KVBlocks(
        num_blocks=num_blocks,
        block_size=block_size,
        windows=windows,
        max_step_tokens=max_num_batched_tokens,
        caches_prefixes=caches_prefixes,
    )
    return Scheduler(limits, blocks, EngineMetrics(), prompt_budget=prompt_budget, run_ahead=run_ahead)


def make_core(config: ToyConfig, *, overlap: bool = True, runner: Runner | None = None, **scheduling: Any) -> EngineCore:
    """An engine that runs the toy `config`, or `runner` in its place; `scheduling` as for make_scheduler."""
    eos = () if config.eos_token_id is None else (config.eos_token_id,)
    scheduler = make_scheduler(windows=config.windows, vocab_size=config.vocab_size, eos_token_ids=eos, **scheduling)
    if runner is None:
        runner = make_runner(config, scheduler)
    return EngineCore(scheduler, runner, overlap=overlap)


def make_runner(config: ToyConfig, scheduler: Scheduler) -> ToyRunner:
    """The toy over as many blocks as the scheduler hands out."""
    blocks = scheduler.blocks
    return ToyRunner(config, num_blocks=blocks.pool.num_blocks, block_size=blocks.block_size)


def make_submit(
    prompt: Sequence[int],
    max_tokens: int = 8,
    *,
    output: Sequence[int] = (),
    priority: int = 0,
    cache_salt: str = "",
    **fields: Any,
) -> Submit:
    """A Submit; `fields` are those of Sampling."""
    return Submit(
        request_id=1,
        token_ids=array("i", [*prompt, *output]).tobytes(),
        num_output_tokens=len(output),
        sampling=Sampling(**{"seed": 0, "max_tokens": max_tokens, **fields}),
        priority=priority,
        cache_salt=cache_salt,
    )


class FixedRunAhead:
    """A RunAhead by a list of numbers of steps, over and over."""

    def __init__(self, *num_steps: int) -> None:
        self._num_steps = itertools.cycle(num_steps)

    def num_decode_steps(self) -> int:
        return next(self._num_steps)

    def note(self, step: LaunchedStep, now_s: float) -> None:
        """Nothing is measured."""


class FixedPromptBudget:
    """A PromptBudget of so many tokens."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def prompt_tokens(self, num_decodes: int, num_waiting_tokens: int) -> int:
        assert num_waiting_tokens > 0
        return self._num_tokens


class Collected:
    """The outputs of an engine by request; checks that each request's story is told once, in order and to its end."""

    def __init__(self) -> None:
        self.outputs: dict[Any, list[RequestOutput]] = {}
        self.token_ids: dict[Any, list[int]] = {}
        self.finish_reasons: dict[Any, FinishReason] = {}

    def expect(self, key: Hashable, num_output_tokens: int = 0) -> None:
        """A request was submitted, with so many output tokens already."""
        self.outputs[key] = []
        self.token_ids[key] = [0] * num_output_tokens

    def take(self, outputs: Iterable[RequestOutput]) -> None:
        """Outputs of one step."""
        for output in outputs:
            assert output.key not in self.finish_reasons, f"{output.key} goes on after its end"
            assert output.position == len(self.token_ids[output.key]), f"{output.key} has a gap or a repetition"
            self.outputs[output.key].append(output)
            self.token_ids[output.key] += output.token_ids
            if output.finish_reason is not None:
                self.finish_reasons[output.key] = output.finish_reason


def run_to_end(core: EngineCore, submits: Mapping[Any, Submit], max_steps: int = 10_000) -> Collected:
    """Submits everything at once and steps until nothing is left; audits the bookkeeping after every step."""
    collected = Collected()
    for key, submit in submits.items():
        collected.expect(key, submit.num_output_tokens)
        core.submit(key, submit)
    finish(core, collected, max_steps)
    return collected


def finish(core: EngineCore, collected: Collected, max_steps: int = 10_000) -> None:
    """Steps until nothing is left."""
    for _ in range(max_steps):
        if not core.has_work:
            break
        collected.take(core.step())
        core.scheduler.check_integrity()
    assert not core.has_work, "the engine does not come to an end"
    assert collected.finish_reasons.keys() == collected.outputs.keys(), "a request has no end"
    core.scheduler.blocks.check_idle()

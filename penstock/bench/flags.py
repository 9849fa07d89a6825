"""From the flags of `penstock bench` to what is to be done."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import lengths, values
from .parser import (
    API_KEY_VARIABLE,
    DEFAULT_CONCURRENCY,
    FEWEST_PROMPTS,
    MOST_WORKERS,
    PROMPTS_PER_CLIENT,
    RATE_SECONDS,
    SAMPLING_FIELDS,
    VOCAB_SIZE,
    make_parser,
)
from .settings import CHAT, COMPLETIONS, BenchError, Load, Slo, Target, Work, api_url


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """A command line, understood. The target's model is empty where the server is to be asked for it."""

    target: Target
    works: tuple[Work, ...]
    """One for each load."""
    loads: tuple[Load, ...]
    num_warmups: int
    """Requests (or conversations) before each load that are not counted."""
    num_runs: int
    """How often each load is run."""
    slo: Slo
    num_workers: int
    json_path: Path | None
    plot_path: Path | None
    quiet: bool


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> BenchOptions:
    """Ends the process with one line and exit code 2 for what is not understood; raises BenchError for what cannot be."""
    parser = make_parser()
    flags = parser.parse(arguments)
    turns = flags.turns or (lengths.AGENT_TURNS if flags.lengths == lengths.AGENTS else 1)
    endpoint = flags.endpoint or (CHAT if turns > 1 else COMPLETIONS)
    if turns > 1 and endpoint != CHAT:
        parser.error("conversations of several turns need --endpoint chat")
    if endpoint == CHAT and flags.vocab_size:
        parser.error("--vocab-size is for prompts of token ids, so for --endpoint completions")
    if turns == 1 and flags.think_time:
        parser.error("--think-time lies between the turns of a conversation: it needs --turns")
    loads = _loads(flags.concurrency, flags.request_rate)
    return BenchOptions(
        target=_target(flags, endpoint, environment),
        works=tuple(_work(flags, load, turns) for load in loads),
        loads=loads,
        num_warmups=flags.warmup,
        num_runs=flags.repeat,
        slo=values.slo(flags.goodput),
        num_workers=flags.workers or min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // 2)),
        json_path=flags.json,
        plot_path=flags.plot,
        quiet=flags.quiet,
    )


def _target(flags: argparse.Namespace, endpoint: str, environment: Mapping[str, str]) -> Target:
    return Target(
        base_url=api_url(flags.base_url),
        model=flags.model,
        endpoint=endpoint,
        api_key=flags.api_key or environment.get(API_KEY_VARIABLE) or None,
        temperature=flags.temperature,
        ignore_eos=flags.ignore_eos,
        include_usage=flags.usage,
        extra_body=_sampling(flags) | flags.extra_body,
        request_timeout_s=flags.request_timeout,
    )


def _sampling(flags: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(flags, name) for name in SAMPLING_FIELDS}
    return {name: value for name, value in given.items() if value is not None}


def _work(flags: argparse.Namespace, load: Load, turns: int) -> Work:
    shared = flags.shared_prefix_len
    if shared is None:
        shared = lengths.AGENT_SYSTEM_TOKENS if flags.lengths == lengths.AGENTS else 0
    return Work(
        lengths=lengths.check(flags.lengths),
        num_prompts=flags.num_prompts or _num_prompts(load, turns),
        shared_prefix_tokens=shared,
        turns=turns,
        think_time_s=flags.think_time,
        has_tools=flags.lengths == lengths.AGENTS,
        vocab_size=flags.vocab_size or VOCAB_SIZE,
        seed=flags.seed,
    )


def _loads(concurrencies: tuple[int, ...], rates: tuple[float, ...]) -> tuple[Load, ...]:
    """Each combination; all at once (an infinite rate) is a closed loop that holds everything."""
    if len(concurrencies) > 1 and len(rates) > 1:
        raise BenchError("a sweep goes over --concurrency or over --request-rate, not both")
    if not rates:
        return tuple(Load(concurrency=concurrency) for concurrency in concurrencies or (DEFAULT_CONCURRENCY,))
    limits: tuple[int | None, ...] = concurrencies or (None,)
    return tuple(Load(concurrency=limit, request_rate=rate) for limit in limits for rate in rates)


def _num_prompts(load: Load, turns: int) -> int:
    if load.request_rate is not None and math.isfinite(load.request_rate):
        return max(FEWEST_PROMPTS, round(load.request_rate * RATE_SECONDS))
    if turns > 1:
        return load.concurrency or DEFAULT_CONCURRENCY
    return max(FEWEST_PROMPTS, PROMPTS_PER_CLIENT * (load.concurrency or 0))

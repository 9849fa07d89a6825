"""The flags of `penstock bench`: vLLM's names where the meaning is the same."""

from __future__ import annotations

import argparse
import math
import os
from argparse import BooleanOptionalAction
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import flag_values
from ..flags import Parser
from . import lengths, values
from .settings import CHAT, COMPLETIONS, BenchError, Load, Slo, Target, Work, api_url

API_KEY_VARIABLE = "OPENAI_API_KEY"
_DESCRIPTION = """\
Sends requests to any OpenAI-compatible server and measures how it answers: time to the first token (TTFT), time of a token
after it (TPOT), gaps between chunks (ITL), end-to-end time, tokens per second."""
_EPILOG = """\
Lists such as 1,8,64 make a sweep. Ctrl-C prints what was measured so far. Exit code: 0, 1 if requests failed, 2 if it could not
begin, 130 after Ctrl-C. Example: penstock bench --concurrency 1,8,64 --goodput ttft:200 tpot:20 --plot sweep.png"""
_DEFAULT_CONCURRENCY = 16
_PROMPTS_PER_CLIENT = 10
_FEWEST_PROMPTS = 100
_RATE_SECONDS = 30
_MOST_WORKERS = 8
_VOCAB_SIZE = 2000
"""Below the vocabulary of every model, the bundled one included; enough ids for prompts that share no prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """A command line, understood. The target's model is empty where the server is to be asked for it."""

    target: Target
    works: tuple[Work, ...]
    """One for each load."""
    loads: tuple[Load, ...]
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
    loads = _loads(flags.concurrency, flags.request_rate)
    return BenchOptions(
        target=_target(flags, endpoint, environment),
        works=tuple(_work(flags, load, turns) for load in loads),
        loads=loads,
        slo=values.slo(flags.goodput),
        num_workers=flags.workers or min(_MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // 2)),
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
        extra_body=flags.extra_body,
        request_timeout_s=flags.request_timeout,
    )


def _work(flags: argparse.Namespace, load: Load, turns: int) -> Work:
    shared = flags.shared_prefix_len
    if shared is None:
        shared = lengths.AGENT_SYSTEM_TOKENS if flags.lengths == lengths.AGENTS else 0
    return Work(
        lengths=lengths.check(flags.lengths),
        num_prompts=flags.num_prompts or _num_prompts(load, turns),
        shared_prefix_tokens=shared,
        turns=turns,
        vocab_size=flags.vocab_size or _VOCAB_SIZE,
        seed=flags.seed,
    )


def make_parser() -> Parser:
    parser = Parser("penstock bench", "%(prog)s [flags]", _DESCRIPTION, _EPILOG)
    _add_server_flags(parser)
    _add_load_flags(parser)
    _add_request_flags(parser)
    _add_output_flags(parser)
    return parser


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--base-url",
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="with or without /v1 (default: http://127.0.0.1:8000)",
    )
    group.add_argument("--model", default="", help="name of the model (default: the first that the server lists)")
    group.add_argument("--api-key", type=flag_values.api_key, metavar="KEY", help=f"default: what {API_KEY_VARIABLE} says")
    group.add_argument(
        "--endpoint",
        choices=(COMPLETIONS, CHAT),
        help="completions: random token ids; chat: messages of random words (default: completions; chat with --turns)",
    )


def _add_load_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load", "A closed loop, an open one, or an open one with a limit.")
    group.add_argument(
        "--concurrency",
        "--max-concurrency",
        type=values.positive_integers,
        default=(),
        metavar="N[,N...]",
        help=f"requests in flight together (default: {_DEFAULT_CONCURRENCY}, none with --request-rate)",
    )
    group.add_argument(
        "--request-rate",
        type=values.rates,
        default=(),
        metavar="R[,R...]",
        help="arrivals per second on average, as a Poisson process; inf: all at once",
    )
    group.add_argument(
        "--num-prompts",
        type=flag_values.size,
        metavar="N",
        help=f"requests of a load, or conversations (default: {_PROMPTS_PER_CLIENT} per client or {_RATE_SECONDS} s of "
        f"arrivals, at least {_FEWEST_PROMPTS}; a conversation per client)",
    )
    group.add_argument(
        "--workers",
        type=flag_values.process_count,
        metavar="N",
        help=f"client processes (default: one for two cores, at most {_MOST_WORKERS})",
    )
    group.add_argument("--request-timeout", type=flag_values.seconds, default=600.0, metavar="SECONDS", help="default: 600")


def _add_request_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests", "The same seed gives the same requests, in the same order.")
    group.add_argument(
        "--lengths",
        default=lengths.SHAREGPT,
        help="tokens in and out: sharegpt (about 220 and 200), uniform (100 to 1024 both), prefill (1024x128), single "
        f"(128x512), INxOUT such as 1024x128 or 100-500x64, or agents: {lengths.AGENT_TURNS} turns of 300x150 after a "
        f"system prompt of {lengths.AGENT_SYSTEM_TOKENS:,} (default: sharegpt)",
    )
    group.add_argument("--shared-prefix-len", type=flag_values.size, metavar="N", help="tokens that all prompts begin with")
    group.add_argument(
        "--turns",
        type=flag_values.size,
        metavar="N",
        help="requests of a conversation: each sends what was said before (default: 1)",
    )
    group.add_argument(
        "--vocab-size", type=values.vocab_size, metavar="N", help=f"token ids of prompts stay below (default: {_VOCAB_SIZE})"
    )
    group.add_argument("--seed", type=flag_values.seed, default=0, help="default: 0")
    group.add_argument("--temperature", type=values.temperature, default=0.0, metavar="T", help="default: 0")
    group.add_argument(
        "--ignore-eos", action=BooleanOptionalAction, default=True, help="answers of exactly the wanted length (default: on)"
    )
    group.add_argument(
        "--usage", action=BooleanOptionalAction, default=True, help="ask the server for token counts (default: on)"
    )
    group.add_argument(
        "--extra-body", type=values.json_object, default={}, metavar="JSON", help="fields added to every request"
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--goodput",
        nargs="+",
        type=values.limit,
        default=[],
        metavar="NAME:MS",
        help="limits of a good request, such as ttft:200 tpot:20 e2e:5000",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw them (needs penstock[bench])")
    group.add_argument("--quiet", action="store_true", help="no progress")


def _loads(concurrencies: tuple[int, ...], rates: tuple[float, ...]) -> tuple[Load, ...]:
    """Each combination; all at once (an infinite rate) is a closed loop that holds everything."""
    if len(concurrencies) > 1 and len(rates) > 1:
        raise BenchError("a sweep goes over --concurrency or over --request-rate, not both")
    if not rates:
        return tuple(Load(concurrency=concurrency) for concurrency in concurrencies or (_DEFAULT_CONCURRENCY,))
    limits: tuple[int | None, ...] = concurrencies or (None,)
    return tuple(Load(concurrency=limit, request_rate=rate) for limit in limits for rate in rates)


def _num_prompts(load: Load, turns: int) -> int:
    if load.request_rate is not None and math.isfinite(load.request_rate):
        return max(_FEWEST_PROMPTS, round(load.request_rate * _RATE_SECONDS))
    if turns > 1:
        return load.concurrency or _DEFAULT_CONCURRENCY
    return max(_FEWEST_PROMPTS, _PROMPTS_PER_CLIENT * (load.concurrency or 0))

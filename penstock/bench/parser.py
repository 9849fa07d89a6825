"""The command line of `penstock bench`: vLLM's names where the meaning is the same."""

from __future__ import annotations

import argparse
from argparse import BooleanOptionalAction
from pathlib import Path

from .. import flag_values
from ..flags import Parser
from . import lengths, values
from .settings import CHAT, COMPLETIONS

API_KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_CONCURRENCY = 16
PROMPTS_PER_CLIENT = 10
FEWEST_PROMPTS = 100
RATE_SECONDS = 30
MOST_WORKERS = 8
VOCAB_SIZE = 2000
"""Below the vocabulary of every model, the bundled one included; enough ids for prompts that share no prefix."""
SAMPLING_FIELDS = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
"""Flags that are sent as they are, where given; the server says which values it takes."""
_DESCRIPTION = """\
Sends requests to any OpenAI-compatible server and measures how it answers: time to the first token (TTFT), time of a token
after it (TPOT), gaps between chunks (ITL), end-to-end time, tokens per second."""
_EPILOG = """\
Lists such as 1,8,64 make a sweep. Ctrl-C prints what was measured so far. Exit code: 0, 1 if requests failed, 2 if it could not
begin, 130 after Ctrl-C. Example: penstock bench --concurrency 1,8,64 --goodput ttft:200 tpot:20 --plot sweep.png"""


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
        help=f"requests in flight together (default: {DEFAULT_CONCURRENCY}, none with --request-rate)",
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
        help=f"requests of a load, or conversations (default: {PROMPTS_PER_CLIENT} per client or {RATE_SECONDS} s of "
        f"arrivals, at least {FEWEST_PROMPTS}; a conversation per client)",
    )
    group.add_argument(
        "--workers",
        type=flag_values.process_count,
        metavar="N",
        help=f"client processes (default: one for two cores, at most {MOST_WORKERS})",
    )
    group.add_argument(
        "--warmup",
        "--num-warmups",
        type=values.count_or_none,
        default=0,
        metavar="N",
        help="requests (or conversations) before each load that are not counted; prompts of their own (default: 0)",
    )
    group.add_argument(
        "--repeat",
        type=values.run_count,
        default=1,
        metavar="N",
        help="runs of each load, with other prompts of the same lengths: medians and their spread (default: 1)",
    )
    group.add_argument("--request-timeout", type=flag_values.seconds, default=600.0, metavar="SECONDS", help="default: 600")


def _add_request_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests", "The same seed gives the same requests, in the same order.")
    group.add_argument(
        "--lengths",
        default=lengths.SHAREGPT,
        help="tokens in and out: sharegpt (about 220 and 200), uniform (100 to 1024 both), prefill (1024x128), single "
        f"(128x512), INxOUT such as 1024x128 or 100-500x64, or agents: {lengths.AGENT_TURNS} turns of 300x150 after a "
        f"system prompt of {lengths.AGENT_SYSTEM_TOKENS:,} with the definitions of tools (default: sharegpt)",
    )
    group.add_argument("--shared-prefix-len", type=flag_values.size, metavar="N", help="tokens that all prompts begin with")
    group.add_argument(
        "--turns",
        type=flag_values.size,
        metavar="N",
        help="requests of a conversation: each sends what was said before (default: 1)",
    )
    group.add_argument(
        "--think-time",
        type=flag_values.seconds,
        default=0.0,
        metavar="SECONDS",
        help="mean pause of a conversation before its next turn, exponentially distributed (default: 0)",
    )
    group.add_argument(
        "--vocab-size", type=values.vocab_size, metavar="N", help=f"token ids of prompts stay below (default: {VOCAB_SIZE})"
    )
    group.add_argument("--seed", type=flag_values.seed, default=0, help="default: 0")
    group.add_argument("--temperature", type=values.temperature, default=0.0, metavar="T", help="default: 0")
    for name in SAMPLING_FIELDS:
        kind = values.whole_number if name == "top_k" else values.number
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help="sent as it is (default: not sent)")
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

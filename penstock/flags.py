"""The commands' flags: vLLM's names wherever the meaning is the same, mapped onto EngineConfig and FrontendConfig and back.

A flag's destination is the field of the configuration it fills. `engine_arguments` and `frontend_arguments` write the command
line of a child process; API keys never stand on one.
"""

from __future__ import annotations

import argparse
import difflib
from argparse import SUPPRESS, BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from . import flag_values
from .engine.config import EngineConfig
from .frontend.config import FrontendConfig

USAGE_ERROR = 2
"""Exit code of a command that was not understood or cannot work as asked."""
DTYPES = {"half": "float16", "float": "float32"}
"""vLLM's other names."""
OPTION_NAMES = {"served_model_names": "served-model-name", "shutdown_timeout_s": "shutdown-timeout"}
"""Fields whose flag has another name than the field."""
ENGINE = EngineConfig()
FRONTEND = FrontendConfig(socket_dir=Path())
"""The defaults."""
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the flag that may have been meant; `--max_model_len` is `--max-model-len`."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, usage=usage, description=description, epilog=epilog, allow_abbrev=False)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        given = [_with_hyphens(argument) for argument in arguments]
        for argument in given:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and flag != "--" and flag not in self._option_string_actions:
                self.error(f"there is no flag {flag}{did_you_mean(flag, self._visible_flags())}")
        return self.parse_args(given)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _visible_flags(self) -> list[str]:
        return [flag for flag, action in self._option_string_actions.items() if action.help != SUPPRESS]


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """ ", did you mean X?", or nothing where no name comes close."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.7)
    return f", did you mean {close[0]}?" if close else ""


def _with_hyphens(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded."""
    group = parser.add_argument_group("model")
    group.add_argument("model_argument", metavar="MODEL", nargs="?", help="the same as --model")
    group.add_argument("--model", help="a Hugging Face id or a local directory (default: the bundled demo model)")
    group.add_argument(
        "--served-model-name",
        dest="served_model_names",
        metavar="NAME",
        nargs="+",
        action="extend",
        type=flag_values.name,
        help="names clients may ask for",
    )
    group.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    group.add_argument("--tokenizer", metavar="PATH", help="directory or id of the tokenizer, where it is not the model's own")
    group.add_argument(
        "--download-dir", type=Path, metavar="DIR", help="where downloads are kept (default: Hugging Face's cache)"
    )
    group.add_argument("--load-format", choices=("auto", "safetensors", "dummy"), help="dummy: random weights")
    group.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16", *DTYPES), help="default: the checkpoint's; float32 on CPU"
    )
    group.add_argument("--seed", type=flag_values.seed, help="of random weights and of requests that bring no seed")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """How the engine uses the machine. Sizes may be written 8192, 8k (8,000), 8K (8,192) or 4GiB."""
    group = parser.add_argument_group("engine", "Sizes may be written 8192, 8k (8,000), 8K (8,192) or 4GiB.")
    size: dict[str, Any] = {"type": flag_values.size, "metavar": "N"}
    group.add_argument("--device", choices=("auto", "cuda", "cpu"), help="default: cuda where there is one")
    group.add_argument(
        "--max-model-len",
        type=flag_values.size_or_auto,
        metavar="TOKENS",
        help="prompt and output of one request (default: the model's maximum, or what fits)",
    )
    group.add_argument(
        "--max-num-seqs",
        **size | {"type": flag_values.request_count},
        help=f"requests that run at once (default: {ENGINE.max_num_seqs})",
    )
    group.add_argument(
        "--max-num-batched-tokens", **size, help=f"most tokens of one step (default: {ENGINE.max_num_batched_tokens})"
    )
    group.add_argument(
        "--gpu-memory-utilization",
        type=flag_values.fraction,
        metavar="SHARE",
        help=f"of the GPU's memory, 0 to 1 (default: {ENGINE.gpu_memory_utilization})",
    )
    group.add_argument(
        "--kv-cache-memory-bytes",
        **size | {"metavar": "BYTES"},
        help="size of the KV cache (default: what is left; at most 1 GiB on CPU)",
    )
    group.add_argument("--num-gpu-blocks-override", **size, help="number of KV blocks, whatever the memory plan says")
    group.add_argument("--block-size", **size, help=f"tokens of one KV block (default: {ENGINE.block_size})")
    group.add_argument(
        "--enable-prefix-caching", action=BooleanOptionalAction, help="reuse the KV cache of equal beginnings (default: on)"
    )
    group.add_argument("--enforce-eager", action=BooleanOptionalAction, help="no CUDA graphs")
    group.add_argument(
        "--async-scheduling", action=BooleanOptionalAction, help="plan a step while the last one runs (default: on)"
    )
    group.add_argument(
        "--deterministic", action=BooleanOptionalAction, help="bitwise the same tokens and logprobs in any batch (slower)"
    )


def add_http_flags(parser: argparse.ArgumentParser, *, default_frontends: str = "1") -> None:
    """How the frontends serve, and how many there are."""
    group = parser.add_argument_group("HTTP")
    group.add_argument(
        "--frontends",
        "--api-server-count",
        type=flag_values.frontend_count,
        default=default_frontends,
        metavar="N",
        help=f"HTTP processes; auto: as many as suit the cores (default: {default_frontends})",
    )
    group.add_argument(
        "--host", type=flag_values.name, help=f"address to listen on (default: {FRONTEND.host}; 0.0.0.0 for all)"
    )
    group.add_argument("--port", type=flag_values.port, help=f"default: {FRONTEND.port}; 0 takes a free one")
    group.add_argument(
        "--api-key",
        dest="api_keys",
        metavar="KEY",
        nargs="+",
        action="extend",
        type=flag_values.api_key,
        help="keys that clients may use; better in the environment variable PENSTOCK_API_KEY, where others cannot see them",
    )
    group.add_argument(
        "--max-body-bytes",
        type=flag_values.size,
        metavar="BYTES",
        help=f"longer requests are refused with 413 (default: {FRONTEND.max_body_bytes >> 20} MiB)",
    )
    group.add_argument(
        "--stream-interval",
        type=flag_values.token_count,
        metavar="TOKENS",
        help=f"tokens of each event of a stream; the first and the last go at once (default: {FRONTEND.stream_interval})",
    )
    group.add_argument(
        "--shutdown-timeout",
        dest="shutdown_timeout_s",
        type=flag_values.seconds,
        metavar="SECONDS",
        help=f"how long open requests may go on after SIGTERM or Ctrl-C (default: {FRONTEND.shutdown_timeout_s:g})",
    )
    group.add_argument("--log-level", "--uvicorn-log-level", choices=LOG_LEVELS, help="default: info")


def engine_config(parser: Parser, flags: argparse.Namespace, socket_dir: Path | None) -> EngineConfig:
    """What the parsed flags say about the engine."""
    named, positional = flags.model, flags.model_argument
    if named is not None and positional is not None and named != positional:
        parser.error(f"two models are named: {positional} and --model {named}")
    model = named if named is not None else positional
    if model is not None and not model.strip():
        parser.error("the model's name is empty")
    given = _given(EngineConfig, flags) | {"model": model, "socket_dir": socket_dir}
    given["dtype"] = DTYPES.get(flags.dtype, flags.dtype)
    return EngineConfig(**{name: value for name, value in given.items() if value is not None})


def frontend_config(
    parser: Parser, flags: argparse.Namespace, socket_dir: Path, api_keys_from_environment: str
) -> FrontendConfig:
    """What the parsed flags say about the frontends; keys come from flags and environment alike."""
    given = _given(FrontendConfig, flags) | {"socket_dir": socket_dir}
    try:
        from_environment = [flag_values.api_key(key.strip()) for key in api_keys_from_environment.split(",") if key.strip()]
    except argparse.ArgumentTypeError as error:
        parser.error(f"PENSTOCK_API_KEY: {error}")
    given["api_keys"] = tuple(dict.fromkeys([*(flags.api_keys or ()), *from_environment]))
    return FrontendConfig(**given)


def engine_arguments(config: EngineConfig) -> list[str]:
    """The flags from which `engine_config` makes this configuration again, the directory of sockets included."""
    return _arguments(config, ENGINE, left_out=())


def frontend_arguments(config: FrontendConfig) -> list[str]:
    """The same for a frontend, but for its API keys: those travel in PENSTOCK_API_KEY."""
    return _arguments(config, FRONTEND, left_out=("api_keys",))


def _given(config_type: type[Any], flags: argparse.Namespace) -> dict[str, Any]:
    """The fields of `config_type` that have been set by a flag."""
    values = {field.name: getattr(flags, field.name, None) for field in fields(config_type)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None}


def _arguments(config: Any, default: Any, left_out: Sequence[str]) -> list[str]:
    arguments = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in left_out or value == getattr(default, field.name):
            continue
        option = OPTION_NAMES.get(field.name, field.name.replace("_", "-"))
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            arguments += [f"--{option}={one}" for one in (value if isinstance(value, tuple) else (value,))]
    return arguments

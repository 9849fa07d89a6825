"""The command line: `penstock serve`, its parts `engine` and `frontend`, `health`, `info` and `bench`.

Parses, and hands over to what runs the command; the processes' modules are imported only then. Exit codes: 0 after Ctrl-C or
SIGTERM too, 2 for a command that was not understood or cannot work as asked, with one line on stderr that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import __version__, flag_values
from .flags import (
    USAGE_ERROR,
    Parser,
    add_engine_flags,
    add_http_flags,
    add_model_flags,
    did_you_mean,
    engine_config,
    frontend_config,
)
from .serve import API_KEY_VARIABLE, OPEN_PORT_WARNING, ServeConfig, serve
from .vllm_flags import add_vllm_flags

USAGE = """\
usage: penstock COMMAND [MODEL] [flags]

Penstock serves open-weight language models over OpenAI's API.

commands:
  serve      the whole server: an engine and its frontends on one port
  engine     the engine alone
  frontend   the frontends alone
  health     whether an engine is ready and its steps advance
  info       versions, devices and the memory plan of a model
  bench      measures any OpenAI-compatible server under load

`penstock COMMAND --help` lists the flags of a command, `penstock --version` says which Penstock this is.
MODEL is a Hugging Face id or a local directory; without one the bundled demo model is served.
"""
VLLM_NOTE = "Flags of vLLM that have no effect here are accepted with a warning."


def run(arguments: Sequence[str]) -> int:
    """Runs the command that the arguments (without the program's name) ask for; returns its exit code."""
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "serve": _serve,
        "engine": _engine,
        "frontend": _frontend,
        "health": _health,
        "info": _info,
        "bench": _bench,
    }
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else USAGE_ERROR
    if command in ("-V", "--version", "version"):
        print(f"penstock {__version__}")
        return 0
    if command not in commands:
        meant = ", did you mean penstock serve?" if command.startswith("-") else did_you_mean(command, list(commands))
        say(f"error: there is no command {command}{meant} (see penstock --help)")
        return USAGE_ERROR
    return commands[command](arguments[1:])


def say(line: str) -> None:
    """Prints a line for the person who started the command."""
    print(f"penstock: {line}", file=sys.stderr, flush=True)


def _serve(arguments: Sequence[str]) -> int:
    parser = Parser(
        "penstock serve",
        "%(prog)s [MODEL] [flags]",
        "Serves a model over OpenAI's API: an engine and its frontends on one port.",
        VLLM_NOTE,
    )
    add_model_flags(parser)
    add_http_flags(parser, default_frontends="auto")
    add_engine_flags(parser)
    parser.add_argument(
        "--pin-cores",
        action="store_true",
        help="a core for each frontend and the others for the engine, where no other busy process has the same cores",
    )
    add_vllm_flags(parser)
    flags = parser.parse(arguments)
    with _new_socket_dir() as socket_dir:
        config = ServeConfig(
            engine=engine_config(parser, flags, socket_dir),
            frontend=frontend_config(parser, flags, socket_dir, os.environ.get(API_KEY_VARIABLE, "")),
            num_frontends=flags.frontends,
            pins_cores=flags.pin_cores,
        )
        _warn(flags)
        return _listen_and_serve(config)


def _listen_and_serve(config: ServeConfig) -> int:
    from .listener import ListenError, listen

    try:
        listener = listen(config.frontend.host, config.frontend.port)
    except ListenError as error:
        say(f"error: {error}")
        return USAGE_ERROR
    with listener:
        return serve(config, listener, os.environ, say)


def _engine(arguments: Sequence[str]) -> int:
    parser = Parser(
        "penstock engine",
        "%(prog)s [MODEL] --socket-dir DIR [flags]",
        "Runs the engine alone; frontends of the same --socket-dir find it.",
        VLLM_NOTE,
    )
    add_model_flags(parser)
    add_engine_flags(parser)
    _add_process_flags(parser)
    add_vllm_flags(parser)
    flags = parser.parse(arguments)
    config = engine_config(parser, flags, flags.socket_dir)
    _warn(flags)
    _prepare_process(flags)
    from .engine.main import run

    return run(config)


def _frontend(arguments: Sequence[str]) -> int:
    parser = Parser(
        "penstock frontend",
        "%(prog)s --socket-dir DIR [flags]",
        "Runs frontends alone; they find the engine of the same --socket-dir.",
    )
    add_http_flags(parser)
    _add_process_flags(parser)
    parser.add_argument("--name", help="told apart in logs and metrics (default: frontend)")
    parser.add_argument(
        "--listen-fd", type=int, metavar="FD", help="an inherited listening socket, in place of --host and --port"
    )
    parser.add_argument("--board-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    flags = parser.parse(arguments)
    config = frontend_config(parser, flags, flags.socket_dir, os.environ.get(API_KEY_VARIABLE, ""))
    if flags.frontends > 1 and flags.listen_fd is not None:
        parser.error("--listen-fd is for one frontend")
    _prepare_process(flags)
    if flags.frontends > 1:
        return _listen_and_serve(ServeConfig(engine=None, frontend=config, num_frontends=flags.frontends))
    from .frontend.main import run
    from .listener import is_loopback

    if flags.listen_fd is None and not config.api_keys and not is_loopback(config.host):
        say(OPEN_PORT_WARNING)
    return run(config)


def _health(arguments: Sequence[str]) -> int:
    parser = Parser(
        "penstock health",
        "%(prog)s --socket-dir DIR [flags]",
        "Asks the engine of a --socket-dir how it does; exit code 0 if it is ready and its steps advance, else 1.",
    )
    parser.add_argument("--socket-dir", type=Path, required=True, metavar="DIR", help="the engine's directory of sockets")
    parser.add_argument(
        "--timeout",
        type=flag_values.seconds,
        default=4.0,
        metavar="SECONDS",
        help="how long its answers may take (default: 4)",
    )
    flags = parser.parse(arguments)
    from .health import run

    return run(flags.socket_dir, flags.timeout)


def _info(arguments: Sequence[str]) -> int:
    parser = Parser(
        "penstock info",
        "%(prog)s [MODEL] [flags]",
        "Says which versions and devices there are, and how a model would fit.",
        VLLM_NOTE,
    )
    add_model_flags(parser)
    add_engine_flags(parser)
    add_vllm_flags(parser)
    flags = parser.parse(arguments)
    config = engine_config(parser, flags, None)
    _warn(flags)
    from .info import run

    return run(config)


def _bench(arguments: Sequence[str]) -> int:
    from .bench.run import run

    return run(arguments)


def _warn(flags: argparse.Namespace) -> None:
    for warning in flags.warnings:
        say(f"warning: {warning}")


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="private directory of the sockets (mode 0700), made where it is missing",
    )
    parser.add_argument("--parent-pid", type=int, help=argparse.SUPPRESS)


def _prepare_process(flags: argparse.Namespace) -> None:
    """What a process needs before it starts: an end together with its supervisor, and the directory of sockets."""
    if flags.parent_pid is not None:
        from .processes import die_with_parent

        die_with_parent(flags.parent_pid)
    try:
        flags.socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        say(f"error: --socket-dir {flags.socket_dir}: {error.strerror}")
        raise SystemExit(USAGE_ERROR) from None


@contextlib.contextmanager
def _new_socket_dir() -> Iterator[Path]:
    from .ipc.sockets import make_socket_dir

    directory = make_socket_dir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)

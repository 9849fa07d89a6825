"""The engine process: load, bind, serve until SIGTERM or SIGINT."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from types import FrameType

from .build import load_engine
from .config import EngineConfig
from .errors import EngineStartError
from .server import EngineServer
from .start_up import StartUp, process_age_s

START_FAILED = 2
"""Exit code when the engine cannot start as asked; starting it again will not help."""
STOPPED_TWICE = 1


def run(config: EngineConfig) -> int:
    """Serves in `config.socket_dir` until a signal; returns the exit code.

    The first SIGTERM or SIGINT lets what runs finish, the second ends the process at once.
    """
    start_up = StartUp(process_age_s())
    faulthandler.enable(2)  # a crash below Python shows where
    try:
        server = _start(config, start_up)
    except EngineStartError as error:
        print(f"penstock engine: error: {error}", file=sys.stderr, flush=True)
        return START_FAILED
    _stop_on_signals(server)
    print(start_up.finish(), file=sys.stderr, flush=True)
    server.serve()
    return 0


def _start(config: EngineConfig, start_up: StartUp) -> EngineServer:
    if config.socket_dir is None:
        raise EngineStartError("an engine that serves needs --socket-dir")
    loaded = load_engine(config, start_up)
    try:
        return EngineServer(loaded.core, loaded.facts, config.socket_dir)
    except OSError as error:
        raise EngineStartError(f"cannot make sockets in {config.socket_dir}: {error}") from error


def _stop_on_signals(server: EngineServer) -> None:
    num_signals = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal num_signals
        num_signals += 1
        if num_signals > 1:
            os._exit(STOPPED_TWICE)
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # whoever started us wants to deal with it alone
            signal.signal(number, on_signal)

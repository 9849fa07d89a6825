"""`penstock serve`: one engine and N frontends on one port, under a supervisor; without the engine, several frontends alone."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .cores import Division, divide
from .engine.config import EngineConfig
from .flags import engine_arguments, frontend_arguments
from .frontend.board import make_board
from .frontend.config import FrontendConfig
from .listener import is_public, server_url
from .processes import ChildCommand
from .supervisor import ServerPlan, Supervisor

API_KEY_VARIABLE = "PENSTOCK_API_KEY"
OPEN_PORT_WARNING = "warning: other machines can reach this port and no key is asked for, see --api-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The flags of `penstock serve`."""

    engine: EngineConfig | None
    """None: it runs under another supervisor."""
    frontend: FrontendConfig
    num_frontends: int
    pins_cores: bool = False
    """Each frontend has a core, and the engine those that are left."""


def plan_server(
    config: ServeConfig,
    listener: socket.socket,
    board_fd: int,
    environment: Mapping[str, str],
    division: Division | None = None,
) -> ServerPlan:
    """The commands of the children. Keys are in the frontends' environment only, and on no command line."""
    program = (sys.executable, "-P", "-m", "penstock")  # -P: the working directory may hold a folder called torch
    parent = f"--parent-pid={os.getpid()}"
    without_keys = {name: value for name, value in environment.items() if name != API_KEY_VARIABLE}
    api_keys = config.frontend.api_keys
    with_keys = without_keys | ({API_KEY_VARIABLE: ",".join(api_keys)} if api_keys else {})
    frontends = []
    for number in range(config.num_frontends):
        frontend = replace(
            config.frontend,
            name=f"{config.frontend.name}-{number}",
            listen_fd=listener.fileno(),
            board_fd=board_fd,
            number=number,
        )
        frontends.append(
            ChildCommand(
                name=frontend.name,
                arguments=(*program, "frontend", parent, *frontend_arguments(frontend)),
                environment=with_keys,
                inherited_fds=(listener.fileno(), board_fd),
                cores=division.frontends[number] if division is not None else (),
            )
        )
    engine = None
    if config.engine is not None:
        arguments = (*program, "engine", parent, *engine_arguments(config.engine))
        cores = division.engine if division is not None else ()
        engine = ChildCommand(name="the engine", arguments=arguments, environment=without_keys, cores=cores)
    return ServerPlan(
        engine=engine,
        frontends=tuple(frontends),
        url=server_url(listener),
        api_key=api_keys[0] if api_keys else None,
        shutdown_timeout_s=config.frontend.shutdown_timeout_s,
    )


def serve(config: ServeConfig, listener: socket.socket, environment: Mapping[str, str], say: Callable[[str], None]) -> int:
    """Serves until a signal comes; returns the exit code."""
    board_fd = make_board(config.num_frontends)
    plan = plan_server(config, listener, board_fd, environment, _division(config, say))
    frontends = "1 frontend" if config.num_frontends == 1 else f"{config.num_frontends} frontends"
    engine = f"the engine with {config.engine.model or 'the demo model'}, and " if config.engine is not None else ""
    say(f"starting {engine}{frontends} on {plan.url}")
    if is_public(listener) and not config.frontend.api_keys:
        say(OPEN_PORT_WARNING)

    async def run() -> int:
        return await Supervisor(plan, say).run()

    try:
        return asyncio.run(run())
    finally:
        os.close(board_fd)


def _division(config: ServeConfig, say: Callable[[str], None]) -> Division | None:
    if not config.pins_cores:
        return None
    cores = sorted(os.sched_getaffinity(0))
    division = divide(cores, config.num_frontends)
    if division is None:
        say(f"warning: --pin-cores has no effect, {len(cores)} cores are too few for {config.num_frontends} frontends")
    return division

"""One frontend process: uvicorn on uvloop over an inherited or an own listening socket, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
import uvloop

from .acceptor import Acceptor
from .app import create_app
from .board import Place
from .config import FrontendConfig
from .garbage import calm_collector
from .http_protocol import BoundedHttpProtocol
from .service import Service

BACKLOG = 2048
KEEP_ALIVE_S = 75
START_FAILED = 2
"""Exit code when starting again will not help."""
_CLOSE_GRACE_S = 2
"""Requests that outlived shutdown_timeout_s were failed; this is for their last bytes."""

_log = logging.getLogger(__name__)


def run(config: FrontendConfig) -> int:
    """Serves until told to stop; returns the exit code: 0, or 2 if the port cannot be had or the model's files not be read."""
    logging.basicConfig(
        level=config.log_level.upper(), format=f"%(asctime)s %(levelname)s {config.name}: %(message)s", stream=sys.stderr
    )
    for chatty in ("uvicorn.error", "asyncio", "sse_starlette"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        listener = _listener(config)
    except OSError as error:
        reason = "is already in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror or error}"
        print(f"penstock: address {config.host}:{config.port} {reason}", file=sys.stderr)
        return START_FAILED
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, listener))


async def serve(config: FrontendConfig, listener: socket.socket) -> int:
    """Serves on the socket until a signal comes and open requests are through, or their time is up; returns the exit code."""
    exit_code = 0

    def give_up() -> None:
        nonlocal exit_code
        exit_code = START_FAILED
        server.end()

    service = Service(config, on_unusable_model=give_up, on_model_loaded=calm_collector)
    server = _Server(
        uvicorn.Config(
            create_app(config, service),
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(config.shutdown_timeout_s) + _CLOSE_GRACE_S,
        ),
        service.place,
    )
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if service.is_draining:
            server.force_exit = True
            service.client.on_lost("the server is shutting down")
            return
        service.is_draining = True
        server.end()
        loop.call_later(config.shutdown_timeout_s, service.client.on_lost, "the server is shutting down")

    # A supervisor may have told its children to ignore the terminal's Ctrl-C: then it stays ignored.
    signals = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    for number in signals:
        loop.add_signal_handler(number, stop)
    await server.serve(sockets=[listener])
    return exit_code


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would raise the signal again at the end, with an `Acceptor` of ours.

    Its loop comes round once a second instead of ten times.
    """

    def __init__(self, config: uvicorn.Config, place: Place) -> None:
        super().__init__(config)
        self._place = place
        self._ends = asyncio.Event()

    def end(self) -> None:
        """Begins the shutdown."""
        self.should_exit = True
        self._ends.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, and the sockets are listened to."""
        await super().startup(sockets=[])
        for listener in sockets or []:
            self.servers.append(self._acceptor(listener))  # type: ignore[arg-type]  # it is only closed and waited for

    async def main_loop(self) -> None:
        """Keeps the Date header right until `end`."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ends.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _acceptor(self, listener: socket.socket) -> Acceptor:
        loop = asyncio.get_running_loop()

        def make_protocol() -> BoundedHttpProtocol:
            return BoundedHttpProtocol(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
                on_lost=acceptor.release,
            )

        acceptor = Acceptor(listener, self._place, make_protocol)
        return acceptor


def _listener(config: FrontendConfig) -> socket.socket:
    if config.listen_fd is not None:
        listener = socket.socket(fileno=config.listen_fd)
    else:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener

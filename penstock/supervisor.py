"""Keeps an engine and its frontends running: starts them, restarts what dies, drains on SIGTERM, leaves nothing behind.

Frontends start at once and answer 503 until the engine is ready. An engine that fails before the server was ever ready ends
everything with its exit code; one that dies later is started again, as is a frontend at any time. The engine may also be
somebody else's child: then only the frontends are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .flags import USAGE_ERROR
from .ipc.messages import LEASE_TIMEOUT_S
from .processes import ChildCommand, describe_exit, kill_session, start, terminate
from .readiness import how_to_try, model_names, wait_for

STABLE_AFTER_S = 10.0
"""A process that ran this long before it died is started again without delay."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0
MOST_EARLY_DEATHS = 4
"""So many times in a row a frontend may die before the server was ever ready."""
KILLED_BY_HAND = 128 + signal.SIGINT
"""Exit code after a second Ctrl-C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """What one `penstock serve` consists of."""

    engine: ChildCommand | None
    """None: it runs under another supervisor."""
    frontends: tuple[ChildCommand, ...]
    url: str
    """Where this machine reaches the listening socket, without a path."""
    api_key: str | None
    """One of the keys, to ask the frontends for the models' names."""
    shutdown_timeout_s: float
    """How long open requests may go on after SIGTERM."""
    exit_grace_s: float = 5.0
    """What a process has to end in beyond that, before it is killed."""


class Supervisor:
    """Runs a plan until a signal or a failed start ends it. `say` prints one line."""

    def __init__(self, plan: ServerPlan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._engine_died = asyncio.Event()
        self._exit_code: int | None = None
        self._was_ready = False

    async def run(self) -> int:
        """Returns the exit code once every process has ended."""
        try:
            with self._signals():
                async with asyncio.TaskGroup() as group:
                    engines = [] if self._plan.engine is None else [self._plan.engine]
                    engine_keepers = [group.create_task(self._keep(one, is_engine=True)) for one in engines]
                    frontends = [group.create_task(self._keep(one, is_engine=False)) for one in self._plan.frontends]
                    announcer = group.create_task(self._announce())
                    await self._stopping.wait()
                    announcer.cancel()
                    await self._end(self._plan.frontends, frontends, self._plan.shutdown_timeout_s)
                    await self._end(engines, engine_keepers, 0)
        finally:
            self._kill_all()
        return self._exit_code or 0

    def stop(self, exit_code: int) -> None:
        """Begins to end everything; the first caller's exit code counts."""
        if self._exit_code is None:
            self._exit_code = exit_code
            self._stopping.set()

    async def _keep(self, command: ChildCommand, *, is_engine: bool) -> None:
        """Starts a child again and again, until it ends because the server is stopping."""
        deaths_in_a_row = 0
        while not self._stopping.is_set():
            started_s = time.monotonic()
            process = await start(command)
            self._processes[command.name] = process
            if self._stopping.is_set():
                terminate(process)
            code = await process.wait()
            kill_session(process)
            if self._stopping.is_set():
                return
            deaths_in_a_row = 1 if time.monotonic() - started_s > STABLE_AFTER_S else deaths_in_a_row + 1
            if not self._was_ready and (is_engine or code == USAGE_ERROR or deaths_in_a_row >= MOST_EARLY_DEATHS):
                self._say(f"{command.name} could not start ({describe_exit(code)})")
                self.stop(USAGE_ERROR if code == USAGE_ERROR else 1)
                return
            if is_engine:
                self._engine_died.set()
            delay_s = 0.0 if deaths_in_a_row == 1 else min(FIRST_DELAY_S * 2 ** (deaths_in_a_row - 2), LONGEST_DELAY_S)
            self._say(
                f"{command.name} has died ({describe_exit(code)}), starting it again{f' in {delay_s:g} s' if delay_s else ''}"
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _announce(self) -> None:
        """Says when the server is ready, and ready again."""
        begin_s = time.monotonic()
        await wait_for(self._plan.url, ready=True)
        self._was_ready = True
        names = await model_names(self._plan.url, self._plan.api_key)
        self._say(f"ready after {time.monotonic() - begin_s:.1f} s, Ctrl-C ends the server")
        for line in how_to_try(self._plan.url, names, needs_key=self._plan.api_key is not None):
            self._say(line)
        while True:
            await self._engine_died.wait()
            self._engine_died.clear()
            begin_s = time.monotonic()
            with contextlib.suppress(TimeoutError):  # frontends need a moment to notice that the engine is gone
                await asyncio.wait_for(wait_for(self._plan.url, ready=False), LEASE_TIMEOUT_S + 1)
            await wait_for(self._plan.url, ready=True)
            self._say(f"ready again after {time.monotonic() - begin_s:.1f} s")

    async def _end(self, commands: Sequence[ChildCommand], keepers: Sequence[asyncio.Task[None]], timeout_s: float) -> None:
        """Ends these children: SIGTERM, and SIGKILL for who has not gone in time."""
        if not keepers:
            return
        for command in commands:
            if command.name in self._processes:
                terminate(self._processes[command.name])
        _, unfinished = await asyncio.wait(keepers, timeout=timeout_s + self._plan.exit_grace_s)
        for command, keeper in zip(commands, keepers, strict=True):
            if keeper in unfinished:
                self._say(f"{command.name} does not end, killing it")
                kill_session(self._processes[command.name])
        await asyncio.wait(keepers)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            handled.append(signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in handled}
        for number in handled:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._stopping.is_set():
            self._say(f"stopping; open requests have {self._plan.shutdown_timeout_s:g} s to finish, Ctrl-C again ends them")
            self.stop(0)
        elif number == signal.SIGINT:
            self._exit_code = KILLED_BY_HAND
            self._kill_all()

    def _kill_all(self) -> None:
        for process in self._processes.values():
            kill_session(process)

"""Runs one load: starts the client processes, gives the signal, and gathers their records.

The API key goes to the clients over a pipe: it never stands on a command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from ..processes import describe_exit, kill_session, terminate
from . import work_list
from .records import Record
from .settings import BenchError, Load, Target, Work
from .worker import Assignment

_HEAD_START_S = 0.1
"""Between the signal and the first request: all clients have read it by then."""
_STOP_GRACE_S = 5.0
_PIPE_BYTES = 1 << 20


@dataclass(slots=True)
class Progress:
    """What is known while a load runs."""

    num_total: int
    started: float = field(default_factory=time.monotonic)
    num_in_flight: int = 0
    num_chunks: int = 0
    records: list[Record] = field(default_factory=list)
    num_errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that one load left behind."""

    load: Load
    records: list[Record]
    client_cpu_shares: list[float]
    """Of a core, for each client process while it ran."""
    lost_clients: list[str]
    """How client processes ended that should not have ended."""
    interrupted: bool


class Runner:
    """One load against one server."""

    def __init__(self, target: Target, work: Work, load: Load, num_workers: int) -> None:
        self._target, self._work, self._load = target, work, load
        limit = work.num_prompts if load.concurrency is None else min(work.num_prompts, load.concurrency)
        self._num_workers = min(num_workers, limit)
        self._in_flight = [0] * self._num_workers
        self._chunks = [0] * self._num_workers
        self._cpu_shares: list[float] = []
        self._lost: list[str] = []
        self._processes: list[Process] = []
        self.progress = Progress(num_total=work.num_prompts * work.turns)

    async def run(self, stop: asyncio.Event, on_progress: Callable[[Progress], None]) -> Outcome:
        """Until the list is done, or `stop` is set; `on_progress` is called with every message of a client."""
        with work_list.make_list(self._work.num_prompts) as list_file:
            stopping = None
            try:
                for number in range(self._num_workers):
                    self._processes.append(await self._start_worker(number, list_file.fileno()))
                unpackers = [msgpack.Unpacker(max_buffer_size=0) for _ in self._processes]
                await asyncio.gather(*map(self._wait_until_ready, self._processes, unpackers))
                self._give_the_signal()
                stopping = asyncio.create_task(self._stop_when(stop))
                await asyncio.gather(
                    *(self._listen(n, process, unpackers[n], on_progress) for n, process in enumerate(self._processes))
                )
            finally:
                if stopping is not None:
                    stopping.cancel()
                await self._end_all()
        return Outcome(
            load=self._load,
            records=self.progress.records,
            client_cpu_shares=self._cpu_shares,
            lost_clients=self._lost,
            interrupted=stop.is_set(),
        )

    async def _start_worker(self, number: int, list_descriptor: int) -> Process:
        concurrency = self._load.concurrency
        lanes = None if concurrency is None else _share(min(concurrency, self._work.num_prompts), self._num_workers, number)
        assignment = Assignment(
            target=self._target,
            work=self._work,
            load=self._load,
            num_lanes=lanes,
            list_descriptor=list_descriptor,
            parent_pid=os.getpid(),
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "penstock.bench.worker"),
            stdin=PIPE,
            stdout=PIPE,
            limit=_PIPE_BYTES,
            pass_fds=(list_descriptor,),
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(f"{assignment.to_json()}\n".encode())
        return process

    async def _wait_until_ready(self, process: Process, unpacker: Any) -> None:
        if await _next_message(process, unpacker) is None:
            raise BenchError(f"a client process did not start ({describe_exit(await process.wait())})")

    def _give_the_signal(self) -> None:
        self.progress.started = time.monotonic() + _HEAD_START_S
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(ConnectionError):
                process.stdin.write(f"{json.dumps(self.progress.started)}\n".encode())

    async def _listen(self, number: int, process: Process, unpacker: Any, on_progress: Callable[[Progress], None]) -> None:
        """Takes in what one client says until its end."""
        while (message := await _next_message(process, unpacker)) is not None:
            if "cpu_share" in message:
                self._cpu_shares.append(message["cpu_share"])
                return
            records = [Record.from_wire(values) for values in message["records"]]
            self.progress.records += records
            self.progress.num_errors += sum(record.error is not None for record in records)
            self._in_flight[number], self._chunks[number] = message["in_flight"], message["chunks"]
            self.progress.num_in_flight, self.progress.num_chunks = sum(self._in_flight), sum(self._chunks)
            on_progress(self.progress)
        self._lost.append(describe_exit(await process.wait()))

    async def _stop_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        for process in self._processes:
            terminate(process)
        await asyncio.sleep(_STOP_GRACE_S)
        for process in self._processes:
            kill_session(process)

    async def _end_all(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
            kill_session(process)
            await process.wait()


def _share(total: int, parts: int, number: int) -> int:
    """The number-th of `parts` whole numbers that add up to `total` and differ by at most one."""
    return total // parts + (number < total % parts)


async def _next_message(process: Process, unpacker: Any) -> dict[str, Any] | None:
    """The next msgpack map of a client, or None when it has said its last."""
    assert process.stdout is not None
    while True:
        for message in unpacker:
            assert isinstance(message, dict)
            return message
        data = await process.stdout.read(_PIPE_BYTES)
        if not data:
            return None
        unpacker.feed(data)


def interrupted_by(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """An event that Ctrl-C and SIGTERM set."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop

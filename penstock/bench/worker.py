"""A client process: takes requests from the shared list, sends them, and tells the parent what became of them.

On standard input the parent writes two lines of JSON: an Assignment, and when all are ready the time to begin. On standard
output go msgpack maps: {"ready"}, then every half second {"records", "in_flight", "chunks"}, and last {"cpu_share"}. SIGTERM
ends the requests in flight; those are not reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import resource
import signal
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Self

import msgpack
import uvloop

from ..processes import die_with_parent
from . import lengths, work_list
from .client import ApiClient, Message
from .prompts import Prompts
from .records import Record
from .settings import CHAT, Load, Target, Work

REPORT_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one client process has to do."""

    target: Target
    work: Work
    load: Load
    num_lanes: int | None
    """Requests that this process keeps in flight; None: as many as arrive."""
    list_descriptor: int
    parent_pid: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        kinds = {"target": Target, "work": Work, "load": Load}
        return cls(**values | {name: kind(**values[name]) for name, kind in kinds.items()})


class Worker:
    """Runs its share of the load."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        work, load = assignment.work, assignment.load
        self._lengths = lengths.draw(work.lengths, work.num_prompts * work.turns, work.seed)
        self._arrivals = None
        if load.request_rate is not None:
            self._arrivals = work_list.arrival_times_s(work.num_prompts, load.request_rate, work.seed)
        self._prompts = Prompts(work)
        self._finished: list[Record] = []
        self._start = 0.0

    async def run(self, start: float) -> None:
        """From `start` (CLOCK_MONOTONIC) until the list is empty, or until SIGTERM."""
        self._start = start
        self._client = ApiClient(self._assignment.target)
        running = asyncio.ensure_future(self._run_lanes())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
        reporting = asyncio.create_task(self._report_regularly())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await running
        finally:
            reporting.cancel()
            self._client.close()
            self._report()

    async def _run_lanes(self) -> None:
        await _sleep_until(self._start)
        if self._assignment.num_lanes is None:
            await self._send_what_arrives()
        else:
            await asyncio.gather(*(self._lane() for _ in range(self._assignment.num_lanes)))

    async def _lane(self) -> None:
        """One at a time: the next begins when the last has ended, and has arrived."""
        while (index := work_list.take(self._assignment.list_descriptor)) is not None:
            await _sleep_until(self._due(index))
            await self._serve(index)

    async def _send_what_arrives(self) -> None:
        async with asyncio.TaskGroup() as group:
            while (index := work_list.take(self._assignment.list_descriptor)) is not None:
                await _sleep_until(self._due(index))
                group.create_task(self._serve(index))

    def _due(self, index: int) -> float | None:
        return None if self._arrivals is None else self._start + self._arrivals[index]

    async def _serve(self, index: int) -> None:
        """All requests of one entry of the list."""
        work = self._assignment.work
        if self._assignment.target.endpoint == CHAT:
            await self._converse(index)
            return
        num_input, num_output = self._lengths[index * work.turns]
        record = self._record(index, 0, num_output)
        await self._client.complete(self._prompts.token_ids(index, num_input), record)
        self._finished.append(record)

    async def _converse(self, index: int) -> None:
        """Turn by turn, each with all that was said before; a turn that fails ends the conversation."""
        work = self._assignment.work
        messages: list[Message] = []
        if self._prompts.system_text:
            messages.append({"role": "system", "content": self._prompts.system_text})
        for turn in range(work.turns):
            if turn:
                await asyncio.sleep(work_list.think_time_s(work, index, turn))
            num_input, num_output = self._lengths[index * work.turns + turn]
            messages.append({"role": "user", "content": self._prompts.text(index, turn, num_input)})
            record = self._record(index, turn, num_output)
            said = await self._client.chat(messages, record, keep_text=work.turns > 1)
            self._finished.append(record)
            if record.error is not None:
                return
            messages.append({"role": "assistant", "content": said})

    def _record(self, index: int, turn: int, num_output: int) -> Record:
        return Record(index=index, turn=turn, wanted_tokens=num_output, start=0.0, due=None if turn else self._due(index))

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            self._report()

    def _report(self) -> None:
        finished, self._finished = self._finished, []
        records = [record.to_wire() for record in finished]
        tell({"records": records, "in_flight": self._client.num_in_flight, "chunks": self._client.num_chunks})


def tell(message: dict[str, Any]) -> None:
    """Writes to the parent; one that has gone is none of a client's business."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(msgpack.packb(message))
        sys.stdout.buffer.flush()


async def _sleep_until(moment: float | None) -> None:
    if moment is not None and (delay := moment - time.monotonic()) > 0:
        await asyncio.sleep(delay)


def main() -> int:
    """The process from its first line to its last."""
    assignment = Assignment.from_json(sys.stdin.readline())
    die_with_parent(assignment.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # each request in flight has a connection
    worker = Worker(assignment)
    tell({"ready": True})
    start_line = sys.stdin.readline()
    if not start_line:
        return 0
    gc.freeze()
    begin_s, cpu_s = time.monotonic(), time.process_time()
    uvloop.run(worker.run(float(start_line)))
    tell({"cpu_share": (time.process_time() - cpu_s) / (time.monotonic() - begin_s)})
    return 0


if __name__ == "__main__":
    sys.exit(main())

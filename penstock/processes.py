"""Child processes of a supervisor: started as commands, gone with their parent, never left behind.

A child leads a session of its own: the terminal's Ctrl-C reaches the supervisor alone, and what a child starts dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCommand:
    """How one child is started."""

    name: str
    """As it is called in log lines."""
    arguments: tuple[str, ...]
    """Program and arguments."""
    environment: Mapping[str, str]
    inherited_fds: tuple[int, ...] = ()
    cores: tuple[int, ...] = ()
    """The CPU cores that it keeps to; empty: those of its parent."""


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies, however that happens; ends it at once where that has happened."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        raise SystemExit("penstock: the supervisor has gone")


async def start(command: ChildCommand) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *command.arguments,
        stdin=asyncio.subprocess.DEVNULL,
        env=dict(command.environment),
        pass_fds=command.inherited_fds,
        start_new_session=True,
    )
    if command.cores:
        with contextlib.suppress(ProcessLookupError):  # it has died already
            os.sched_setaffinity(process.pid, command.cores)  # its threads, which it has not started yet, inherit that
    return process


def terminate(process: asyncio.subprocess.Process) -> None:
    """Asks the process to finish what it has and end."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()


def kill_session(process: asyncio.subprocess.Process) -> None:
    """Kills what is left of the process and of those it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """A return code in words, as asyncio and subprocess give it: negative is a signal's number."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from penstock.processes import ChildCommand, describe_exit, start


def test_a_process_whose_parent_has_gone_ends_at_once() -> None:
    code = "from penstock.processes import die_with_parent; die_with_parent(1 << 30); print('still here')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "the supervisor has gone" in ended.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exit code 0"), (2, "exit code 2"), (-signal.SIGKILL, "killed by SIGKILL"), (-250, "killed by signal 250")],
)
def test_exit_codes_have_words(code: int, words: str) -> None:
    assert describe_exit(code) == words


async def test_a_child_keeps_to_its_cores_and_so_do_its_threads() -> None:
    core = max(os.sched_getaffinity(0))
    code = """if True:
        import os, threading, time
        while len(os.sched_getaffinity(0)) > 1:
            time.sleep(0.01)
        threading.Thread(target=lambda: os._exit(os.sched_getaffinity(0) != {%d})).start()
    """
    command = ChildCommand(name="x", arguments=(sys.executable, "-c", code % core), environment=os.environ, cores=(core,))
    child = await start(command)
    assert await asyncio.wait_for(child.wait(), 30) == 0

"""Long work on texts goes to a worker thread, so that it holds up nobody else's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

LONG_TEXT_CHARS = 4096
"""Tokenizing or rendering more than this takes longer than handing it to a thread."""

_T = TypeVar("_T")


async def off_loop_if(is_long: bool, work: Callable[[], _T]) -> _T:
    """Does the work in a thread if it is long, else at once."""
    return await asyncio.to_thread(work) if is_long else work()

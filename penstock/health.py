"""`penstock health`: asks an engine over its sockets how it does, for the health checks of containers and pods.

An engine is healthy when it greets a new frontend and its heartbeat says that steps advance. Both are answered by the loop that
runs the steps: a process that merely exists does not pass. Imports no torch and takes a fraction of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TypeVar

import zmq.asyncio

from .ipc.codec import ProtocolError
from .ipc.messages import LEASE_TIMEOUT_S, PROTOCOL_VERSION, EngineHeartbeat, Goodbye, Heartbeat, Hello, Ready
from .ipc.sockets import FrontendSocket, SlowPeer

Message = TypeVar("Message", Ready, EngineHeartbeat)

RETRY_INTERVAL_S = 0.2
GOODBYE_S = 0.02
"""LINGER is 0: what a last message has to go out in."""


def run(socket_dir: Path, timeout_s: float) -> int:
    """Prints one line and returns 0 where the engine of these sockets is healthy, 1 where it is not."""
    try:
        verdict = asyncio.run(_examine(socket_dir, timeout_s))
    except TimeoutError:
        verdict = f"no answer from an engine at {socket_dir} within {timeout_s:g} s"
    except ProtocolError as error:
        verdict = f"the engine at {socket_dir} is of another version of Penstock: {error}"
    print(f"penstock: {verdict or 'the engine is healthy'}", flush=True)
    return 1 if verdict else 0


async def _examine(socket_dir: Path, timeout_s: float) -> str | None:
    """What is wrong with the engine, or None. Raises TimeoutError and ProtocolError."""
    context = zmq.asyncio.Context()
    identity = f"health:{os.urandom(8).hex()}".encode()
    data, control = (FrontendSocket(context, socket_dir, pair, identity) for pair in ("data", "control"))
    greeter = asyncio.create_task(_greet(data, control))
    try:
        async with asyncio.timeout(timeout_s):
            ready, heartbeat = await asyncio.gather(_first(data, Ready), _first(control, EngineHeartbeat))
        await _send(control, Goodbye())
        await asyncio.sleep(GOODBYE_S)
    finally:
        greeter.cancel()
        data.close()
        control.close()
        context.term()
    if ready.protocol_version != PROTOCOL_VERSION:
        return f"the engine speaks protocol {ready.protocol_version}, this is {PROTOCOL_VERSION}"
    if heartbeat.step_age_s > LEASE_TIMEOUT_S:
        return f"the engine has not completed a step for {heartbeat.step_age_s:.0f} s"
    return None


async def _greet(data: FrontendSocket, control: FrontendSocket) -> None:
    """Introduces itself until cancelled; the engine may not listen yet."""
    while True:
        await _send(data, Hello(PROTOCOL_VERSION))
        await _send(control, Heartbeat({}, {}))
        await asyncio.sleep(RETRY_INTERVAL_S)


async def _send(socket: FrontendSocket, message: Hello | Heartbeat | Goodbye) -> None:
    with contextlib.suppress(SlowPeer):
        await socket.send(message)


async def _first(socket: FrontendSocket, kind: type[Message]) -> Message:
    """The first message of this kind."""
    while not isinstance(message := await socket.receive(), kind):
        pass
    return message

"""A server of stand-ins under the real supervisor: `python stand_in_server.py supervise DIR [behaviour ...]`.

Each process writes its steps to DIR/events, one line each. The engine is ready when DIR/ready exists. Behaviours:
engine-exits-CODE, engine-has-child, frontend-crashes, frontend-ignores-sigterm, slow-answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from penstock.listener import listen, server_url
from penstock.processes import ChildCommand, die_with_parent
from penstock.supervisor import ServerPlan, Supervisor


def note(directory: Path, event: str, pid: int | None = None) -> None:
    with (directory / "events").open("a") as events:
        events.write(f"{event} {pid or os.getpid()}\n")


def run_engine(directory: Path, behaviours: list[str]) -> None:
    ready = directory / "ready"
    ready.unlink(missing_ok=True)
    note(directory, "engine starts")
    for behaviour in behaviours:
        if behaviour.startswith("engine-exits-"):
            sys.exit(int(behaviour.removeprefix("engine-exits-")))
    if "engine-has-child" in behaviours:
        child = subprocess.Popen(["sleep", "1000"])
        note(directory, "engine has child", child.pid)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    time.sleep(0.2)
    ready.touch()
    while not ended.wait(0.05):
        pass
    ready.unlink(missing_ok=True)
    note(directory, "engine ends")


def run_frontend(directory: Path, behaviours: list[str], listen_fd: int) -> None:
    note(directory, "frontend starts")
    if "frontend-crashes" in behaviours:
        sys.exit(1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/slow":
                note(directory, "slow answer begins")
                time.sleep(1.0)
            self.send_response(200 if (directory / "ready").exists() else 503)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "stand-in"}]}')

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=listen_fd)
    server.socket.setblocking(False)  # the other frontend may have been faster

    def on_sigterm(*_: object) -> None:
        if "frontend-ignores-sigterm" not in behaviours:
            threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, on_sigterm)
    server.serve_forever(poll_interval=0.02)
    note(directory, "frontend ends")


def supervise(directory: Path, behaviours: list[str]) -> int:
    listener = listen("127.0.0.1", 0)

    def command(kind: str, name: str) -> ChildCommand:
        arguments = (sys.executable, __file__, kind, str(directory), str(os.getpid()), str(listener.fileno()), *behaviours)
        return ChildCommand(name=name, arguments=arguments, environment=os.environ, inherited_fds=(listener.fileno(),))

    plan = ServerPlan(
        engine=command("engine", "the engine"),
        frontends=(command("frontend", "frontend-0"), command("frontend", "frontend-1")),
        url=server_url(listener),
        api_key=None,
        shutdown_timeout_s=2.0 if "frontend-ignores-sigterm" not in behaviours else 0.1,
        exit_grace_s=0.5,
    )
    print(plan.url, flush=True)

    async def run() -> int:
        return await Supervisor(plan, lambda line: print(line, file=sys.stderr, flush=True)).run()

    return asyncio.run(run())


def main() -> int:
    kind, directory, *rest = sys.argv[1:]
    if kind == "supervise":
        return supervise(Path(directory), rest)
    parent_pid, listen_fd, *behaviours = rest
    die_with_parent(int(parent_pid))
    with contextlib.suppress(KeyboardInterrupt):
        if kind == "engine":
            run_engine(Path(directory), behaviours)
        else:
            run_frontend(Path(directory), behaviours, int(listen_fd))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How one frontend process is set up: parsed once at the edge, never changed afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """The flags of `penstock frontend`."""

    socket_dir: Path
    """The engine's private directory of sockets."""
    host: str = "127.0.0.1"
    port: int = 8000
    """Bound by the frontend itself where `listen_fd` is None."""
    listen_fd: int | None = None
    """A listening TCP socket inherited from the supervisor, shared by all frontends."""
    board_fd: int | None = None
    """What frontends know of each other (`frontend/board.py`), inherited from the supervisor; None: there are no others."""
    number: int = 0
    """This frontend's place on the board."""
    name: str = "frontend"
    """Told apart in logs and metrics; the start of the identity on the engine's sockets."""
    api_keys: tuple[str, ...] = ()
    """Any of these opens the guarded routes; empty: no key is asked for. Never on a command line of a child process."""
    max_body_bytes: int = 32 << 20
    """A longer request body is refused with 413 before it is read."""
    stream_interval: int = 1
    """Tokens of a choice that share an event of a stream; the first and the last are sent at once."""
    shutdown_timeout_s: float = 30.0
    """After SIGTERM open requests may go on this long."""
    log_level: str = "info"

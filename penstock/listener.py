"""The listening TCP socket: bound once by the supervisor, before anything loads, and inherited by every frontend."""

from __future__ import annotations

import errno
import socket

BACKLOG = 2048
"""Connections that wait to be accepted; the kernel's own limit (net.core.somaxconn) may be lower."""


class ListenError(Exception):
    """The address cannot be listened on; the message says why and which flag to change."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `host`:`port` (0: a free port). Raises ListenError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(f"{host!r} is no address of this machine, choose another with --host ({error})") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(_explain(error, host, port)) from None
    return listener


def server_url(listener: socket.socket) -> str:
    """Where this machine reaches the socket; a socket on all addresses is reached at the loopback one."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_public(listener: socket.socket) -> bool:
    """Whether other machines can reach the socket."""
    return not is_loopback(str(listener.getsockname()[0]))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on this address."""
    return host.startswith("127.") or host in ("::1", "localhost")


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken, choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has, choose one from 1024 up with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine, choose another with --host"
    return f"cannot listen on {host}, port {port}: {error.strerror}"

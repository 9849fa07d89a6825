from __future__ import annotations

import socket

import pytest

from penstock.listener import ListenError, is_public, listen, server_url


def test_a_free_port_is_found_and_listened_on() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert server_url(listener) == f"http://127.0.0.1:{port}"
        assert not is_public(listener)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_socket_on_all_addresses_is_public_and_reached_at_the_loopback_one() -> None:
    with listen("0.0.0.0", 0) as listener:
        assert is_public(listener)
        assert server_url(listener).startswith("http://127.0.0.1:")


def test_a_taken_port_is_named_with_the_flag_that_changes_it() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port} on 127.0.0.1 is taken, choose another with --port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 300])
def test_an_address_of_somebody_else_is_refused(host: str) -> None:
    with pytest.raises(ListenError, match="no address of this machine, choose another with --host"):
        listen(host, 0)

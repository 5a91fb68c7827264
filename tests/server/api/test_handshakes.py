"""A socket that begins no new connections: those that wait come through, others are refused once it is closed."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

import pytest

from server.api.handshakes import drop_handshakes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="filters of sockets are Linux's")
HOSTS = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6"))]


@contextlib.contextmanager
def listening(host: str) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        yield listener


@pytest.mark.parametrize("host", HOSTS)
def test_who_waits_comes_through_and_nobody_else(host: str) -> None:
    with listening(host) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address, 5) as early:
            early.sendall(b"request")
            drop_handshakes(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, 0.3)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(100) == b"request"
                early.sendall(b" and more")
                assert accepted.recv(100) == b" and more"
                accepted.sendall(b"answer")
                assert early.recv(100) == b"answer"
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_who_was_dropped_reaches_the_next_server() -> None:
    """The kernel asks again, after a second: by then the old socket is gone."""
    with listening("127.0.0.1") as listener, socket.socket() as late:
        address = listener.getsockname()
        drop_handshakes(listener)
        late.setblocking(False)
        late.connect_ex(address)
        listener.close()
        with socket.create_server(address) as following:
            following.settimeout(10)
            accepted, where = following.accept()
            accepted.close()
            assert where == late.getsockname()

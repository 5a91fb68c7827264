"""Listening on several addresses, on both families, and on the file of a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from server.errors import ConfigError
from server.system.addresses import UnixListener, listen, url


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
LOCAL_ADDRESSES = ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",)


@contextlib.contextmanager
def listening(hosts: Sequence[str], port: int = 0) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(listener) for listener in listen(hosts, port)]


def accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("hosts", "families"),
    [
        (["127.0.0.1"], {"127.0.0.1"}),
        (["0.0.0.0"], {"127.0.0.1"}),
        (["127.0.0.1", "127.0.0.1"], {"127.0.0.1"}),
        pytest.param(["::1"], {"::1"}, marks=needs_ipv6),
        pytest.param(["[::1]"], {"::1"}, marks=needs_ipv6),
        pytest.param(["::"], {"127.0.0.1", "::1"}, marks=needs_ipv6),
        pytest.param(["127.0.0.1", "::1"], {"127.0.0.1", "::1"}, marks=needs_ipv6),
        pytest.param(["::", "0.0.0.0"], {"127.0.0.1", "::1"}, marks=needs_ipv6),
        pytest.param(["::", "127.0.0.2"], {"::1"}, marks=needs_ipv6),
    ],
)
def test_connections_are_accepted_at_all_hosts_and_nowhere_else(hosts, families):
    with listening(hosts) as listeners:
        (port,) = {listener.getsockname()[1] for listener in listeners}
        assert {address for address in LOCAL_ADDRESSES if accepts(address, port)} == families


def test_a_name_stands_for_all_its_addresses_that_this_machine_has(monkeypatch):
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listening(["name"]) as listeners:
        hosts = [listener.getsockname()[0] for listener in listeners]
    assert hosts == ["127.0.0.1", "127.0.0.2"]


def test_a_free_port_is_free_at_all_hosts(monkeypatch):
    """The first one that the kernel gives is taken at the second address."""
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        real = socket.create_server
        ports = iter([port])

        def create_server(address, **options):
            host, wanted, *more = address
            if wanted == 0 and host == "127.0.0.1":
                wanted = next(ports, 0)
            return real((host, wanted, *more), **options)

        monkeypatch.setattr(socket, "create_server", create_server)
        with listening(["127.0.0.1", "127.0.0.2"]) as listeners:
            first, second = (listener.getsockname()[1] for listener in listeners)
            assert first == second != port


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", "192.0.2.1:0: .* no interface of this machine has this address"),
        ("2001:db8::1", r"\[2001:db8::1\]:0: .* (no interface|this machine has no IPv6)"),
        ("no..name", "no..name:0: .* give addresses of this machine"),
    ],
)
def test_an_address_that_is_not_of_this_machine_is_explained(host, message):
    with pytest.raises(ConfigError, match=f"cannot listen on {message}"):
        listen([host], 0)


def test_a_name_that_is_not_known_is_explained(monkeypatch):
    """Not asked of a real resolver: some answer every name, and some answer slowly."""

    def getaddrinfo(*_: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    expected = "cannot listen on name:0: Name or service not known; give addresses of this machine"
    with pytest.raises(ConfigError, match=expected):
        listen(["name"], 0)


def test_an_address_in_use_is_explained_and_leaves_no_socket_behind():
    with listening(["127.0.0.1"]) as (taken,):
        port = taken.getsockname()[1]
        expected = f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port"
        with pytest.raises(ConfigError, match=expected):
            listen(["127.0.0.2", "127.0.0.1"], port)
        assert not accepts("127.0.0.2", port)


def test_a_machine_without_ipv6_is_explained(monkeypatch):
    def create_socket(family: int, *more: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "")

    monkeypatch.setattr(socket, "socket", create_socket)
    with pytest.raises(ConfigError, match=r"\[::\]:8000: .*; this machine has no IPv6; 0.0.0.0"):
        listen(["::"], 8000)


@needs_ipv6
def test_urls_have_ipv6_addresses_in_brackets():
    with listening(["127.0.0.1", "::1"]) as listeners:
        port = listeners[0].getsockname()[1]
        urls = [url(listener) for listener in listeners]
    assert urls == [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]


class TestUnixListener:
    def test_owner_and_group_may_connect_whatever_the_umask(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        previous = os.umask(0)
        try:
            unix = UnixListener(path)
            assert os.umask(0) == 0
        finally:
            os.umask(previous)
        with unix.socket, socket.socket(socket.AF_UNIX) as client:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            client.connect(str(path))
            assert url(unix.socket) == f"unix:{path}"
        unix.remove_file()
        unix.remove_file()
        assert not path.exists()

    def test_the_file_of_a_server_that_was_killed_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        UnixListener(path).socket.close()
        assert path.exists()
        with UnixListener(path).socket, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))

    def test_the_socket_of_a_running_server_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with UnixListener(path).socket, socket.socket(socket.AF_UNIX) as client:
            with pytest.raises(ConfigError, match="another process listens there"):
                UnixListener(path)
            client.connect(str(path))

    def test_a_file_that_is_no_socket_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("kept")
        with pytest.raises(ConfigError, match="a file that is not a socket"):
            UnixListener(path)
        assert path.read_text() == "kept"

    def test_the_file_of_a_successor_is_not_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        first = UnixListener(path)
        path.rename(tmp_path / "moved")
        with first.socket, UnixListener(path).socket:
            first.remove_file()
            assert path.exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [("missing/socket", "its folder does not exist"), ("x" * 120, "path too long")],
    )
    def test_a_path_that_cannot_be_used_is_explained(
        self, tmp_path: Path, name: str, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"cannot listen on unix:.*{message}"):
            UnixListener(tmp_path / name)

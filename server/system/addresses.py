"""Listening sockets: on addresses of both families, and on the file of a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import ConfigError

BACKLOG = 2048  # pending connections in the kernel, uvicorn's own default
# Owner and group may connect: a proxy in the server's group, and nobody else.
SOCKET_MODE = 0o660
_PORT_ATTEMPTS = 20  # to find a port that is free at every address
_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_HOST_HINTS = {
    errno.EADDRINUSE: "choose another port, or end the process that listens there",
    errno.EACCES: "ports below 1024 need a privilege; choose another port",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
    errno.EAFNOSUPPORT: "this machine has no IPv6; 0.0.0.0 stands for all addresses of IPv4",
}
_FILE_HINTS = {
    errno.EACCES: "this user may not create files in its folder",
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "its folder does not exist",
    errno.EROFS: "its folder is read-only",
}


@dataclass(frozen=True)
class _Address:
    """One address to listen on, of a host as the settings name it."""

    host: str
    family: socket.AddressFamily
    parts: tuple[Any, ...]  # what bind() takes: address, port, and for IPv6 flow and scope

    def listen(self, port: int, both_families: bool) -> socket.socket:
        """Listen on ``port``. Raises `OSError`."""
        return socket.create_server(
            (self.parts[0], port, *self.parts[2:]),
            family=self.family,
            backlog=BACKLOG,
            dualstack_ipv6=both_families and socket.has_dualstack_ipv6(),
        )


def listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Return sockets that listen on ``port`` at all ``hosts``: addresses, or names of this machine.

    ``::`` stands for all addresses of both families, or of IPv6 alone if ``hosts`` has an IPv4
    address too. A name stands for all its addresses that this machine has. If ``port`` is 0, all
    sockets have the same free port.

    Raises:
        ConfigError: a host is unknown, or its port cannot be used.
    """
    addresses = [_resolve(host, port) for host in hosts]
    attempts = 1 if port else _PORT_ATTEMPTS
    for _ in range(attempts - 1):
        with contextlib.suppress(ConfigError):
            return _listen_on_all(addresses, port)
    return _listen_on_all(addresses, port)


def _resolve(host: str, port: int) -> list[_Address]:
    """Return the addresses of ``host``, which may be in brackets as in a URL."""
    try:
        found = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"),
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "this is not a name"
        text = f"{reason}; give addresses of this machine, such as 127.0.0.1 or ::"
        raise ConfigError(f"cannot listen on {_place(host, port)}: {text}") from error
    return [_Address(host, family, parts) for family, _, _, _, parts in found]


def _listen_on_all(hosts: Sequence[Sequence[_Address]], port: int) -> list[socket.socket]:
    both_families = not any(
        address.family == socket.AF_INET for addresses in hosts for address in addresses
    )
    listening: dict[str, socket.socket] = {}  # by address
    with contextlib.ExitStack() as opened:
        for addresses in hosts:
            new = [address for address in addresses if address.parts[0] not in listening]
            for address, listener in _listen_on_one(new, port, both_families):
                opened.enter_context(listener)
                listening[address.parts[0]] = listener
                port = listener.getsockname()[1]
        opened.pop_all()
    return list(listening.values())


def _listen_on_one(
    addresses: Sequence[_Address], port: int, both_families: bool
) -> Iterator[tuple[_Address, socket.socket]]:
    """Yield a socket for each of the addresses of one host that this machine has.

    Raises:
        ConfigError: it has none of them, or an address cannot be used.
    """
    missing: ConfigError | None = None
    has_any = False
    for address in {address.parts[0]: address for address in addresses}.values():
        try:
            listener = address.listen(port, both_families)
        except OSError as error:
            wrong = _error(_place(address.host, port), error, _HOST_HINTS)
            if error.errno not in _UNAVAILABLE:
                raise wrong from error
            missing = wrong
            continue
        has_any = True
        port = listener.getsockname()[1]
        yield address, listener
    if missing is not None and not has_any:
        raise missing


def _place(host: str, port: int) -> str:
    """Return host and port as in a URL (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _error(place: str, error: OSError, hints: Mapping[int, str]) -> ConfigError:
    number = error.errno or 0
    # The message of `create_server` repeats the address.
    reason = os.strerror(number) if number > 0 else str(error)
    hint = hints.get(number)
    return ConfigError(f"cannot listen on {place}: {reason}" + (f"; {hint}" if hint else ""))


def url(listener: socket.socket) -> str:
    """Return the URL of a listening socket; for a Unix socket ``unix:`` and its path."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port, *more = listener.getsockname()
    if listener.family == socket.AF_INET6 and more[1]:
        host = f"{host}%25{socket.if_indextoname(more[1])}"  # RFC 6874, section 2
    return f"http://{_place(host, port)}"


class UnixListener:
    """A listening Unix socket with its file, which owner and group may use (mode 0660).

    The file of a server that has ended without removing it is replaced.

    Attributes:
        socket: the listening socket.

    Raises:
        ConfigError: another process listens there, the path is another file, or the socket cannot
            be created.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            with _locked(self._path.parent):
                _remove_stale(self._path)
                self._bind()
        except (OSError, ConfigError) as error:
            self.socket.close()
            if isinstance(error, ConfigError):
                raise
            # Python's message for a path that is too long has no number.
            raise _error(f"unix:{path}", error, _FILE_HINTS) from error
        status = self._path.stat()
        self._identity = (status.st_dev, status.st_ino)

    def remove_file(self) -> None:
        """Remove the socket's file, so that no connection begins any more."""
        with contextlib.suppress(FileNotFoundError):
            status = self._path.stat()
            if (status.st_dev, status.st_ino) == self._identity:
                self._path.unlink()

    def _bind(self) -> None:
        previous = os.umask(0o777 & ~SOCKET_MODE)
        try:
            self.socket.bind(str(self._path))
        finally:
            os.umask(previous)
        self.socket.listen(BACKLOG)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock, so that no other server takes a socket that is being created for a stale one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove the file of a socket on which nobody listens. Raises `ConfigError`, `OSError`."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on unix:{path}: there is a file that is not a socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return path.unlink()
        except BlockingIOError:
            pass  # its backlog is full
    raise ConfigError(f"cannot listen on unix:{path}: another process listens there")


def without_mapping(address: str) -> str:
    """Return the IPv4 address that an IPv6 address stands for, or ``address`` itself.

    On a socket for both families an IPv4 client has an address such as ::ffff:192.0.2.1 (RFC 4291,
    section 2.5.5.2). Settings and logs know it as 192.0.2.1.
    """
    mapped = address.removeprefix("::ffff:")
    return mapped if "." in mapped else address

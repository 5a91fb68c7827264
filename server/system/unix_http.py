"""HTTP connections of the clients among the commands; also ``unix:/run/tome/tome.sock``."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

_SCHEME = "unix:"


def socket_path(url: str) -> str | None:
    """Return the path of the socket that ``url`` names; None if it names none."""
    if not url.startswith(_SCHEME):
        return None
    path = url.removeprefix(_SCHEME)
    # unix:///path is a URL with an empty host (RFC 8089, appendix B, for files).
    return path.removeprefix("//") if path.startswith("///") else path


class UnixConnection(http.client.HTTPConnection):
    """A connection to the Unix socket at ``path``."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect. Raises `OSError`."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connection_to(url: str, timeout: float) -> http.client.HTTPConnection:
    """Return a connection, not yet open, to the server at ``url``, which may be a Unix socket.

    Raises:
        ValueError: ``url`` has a port that is none.
    """
    path = socket_path(url)
    if path is not None:
        return UnixConnection(path, timeout)
    address = urlsplit(url)
    host = address.hostname or ""
    if address.scheme == "https":
        return http.client.HTTPSConnection(host, address.port, timeout=timeout)
    return http.client.HTTPConnection(host, address.port, timeout=timeout)

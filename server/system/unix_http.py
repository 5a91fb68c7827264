"""HTTP over a Unix socket, for the clients among the commands: ``unix:/run/tome/tome.sock``."""

from __future__ import annotations

import http.client
import socket

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

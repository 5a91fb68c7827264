"""``python -m server.commands.health [/readyz]``: exit code 0 if the server answers with 200.

The image's health check. It finds the server by ``TOME_HOST``, ``TOME_PORT`` and ``TOME_UDS``, as
the server does, and imports the standard library alone: it runs every ten seconds beside a server.
(http.client, not urllib: a proxy in the environment must not be asked for this machine.)
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import time
from collections.abc import Iterator, Mapping

from server.system.unix_http import UnixConnection

TIMEOUT_SECONDS = 4.0
# An address that stands for all of them cannot be connected to everywhere. The second of :: is for
# machines, and lists of addresses, in which it stands for IPv6 alone.
_WILDCARDS = {"0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1")}


def connections(environment: Mapping[str, str]) -> Iterator[http.client.HTTPConnection]:
    """Yield a connection, not yet open, for each address at which the server may be reached."""
    path = environment.get("TOME_UDS")
    if path:
        yield UnixConnection(path, TIMEOUT_SECONDS)
        return
    port = int(environment.get("TOME_PORT") or 8000)
    for item in (environment.get("TOME_HOST") or "127.0.0.1").split(","):
        host = item.strip().removeprefix("[").removesuffix("]")
        for address in _WILDCARDS.get(host, (host,)):
            yield http.client.HTTPConnection(address, port, timeout=TIMEOUT_SECONDS)


def is_healthy(environment: Mapping[str, str], path: str = "/readyz") -> bool:
    """Return whether the server answers ``path`` with 200 at one of its addresses.

    Takes `TIMEOUT_SECONDS` at most.
    """
    end = time.monotonic() + TIMEOUT_SECONDS
    for connection in connections(environment):
        connection.timeout = max(0.1, end - time.monotonic())
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(connection),
        ):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return True
    return False


if __name__ == "__main__":
    sys.exit(0 if is_healthy(os.environ, *sys.argv[1:2]) else 1)

"""The requests of a run, encoded once and sent many times."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from urllib.parse import urlencode, urlsplit

from server.system.unix_http import socket_path
from tome_load.spec import LoadSpec


class Requests:
    """The encoded requests of ``spec``: a head for each ``r`` and picture, and the pictures."""

    def __init__(self, spec: LoadSpec) -> None:
        self._pictures = [picture.content for picture in spec.pictures]
        self._heads: dict[str, list[bytes]] = {}
        for r in spec.r:
            self._heads[r] = [_head(spec, r, len(content)) for content in self._pictures]

    def bytes_of(self, r: str, picture: int) -> tuple[bytes, bytes]:
        """Return head and body of the request for ``picture`` at ``r``."""
        head = self._heads[r][picture]
        body = self._pictures[picture]
        return head, body


def draws(spec: LoadSpec) -> Iterator[tuple[str, int]]:
    """Yield a random ``r`` and the index of a random picture for each request."""
    random = Random(f"{spec.seed}/what")
    while True:
        r = random.choice(spec.r)
        picture = random.randrange(len(spec.pictures))
        yield r, picture


def _head(spec: LoadSpec, r: str, length: int) -> bytes:
    """Return the request line and the header fields, with the empty line that ends them."""
    parts = urlsplit(spec.url)
    host = parts.netloc.rpartition("@")[2] or "localhost"  # a Unix socket has no host
    lines = [
        f"POST {_target(spec, r)} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {length}",
        "User-Agent: tome-serve-load",
    ]
    if spec.key:
        lines.append(f"Authorization: Bearer {spec.key}")
    lines += ["", ""]
    return "\r\n".join(lines).encode("latin-1")


def _target(spec: LoadSpec, r: str) -> str:
    """Return path and query of a request."""
    is_unix = socket_path(spec.url) is not None
    path = "" if is_unix else urlsplit(spec.url).path.rstrip("/")
    parameters = {}
    if r:
        parameters["r"] = r
    if spec.model:
        parameters["model"] = spec.model
    if spec.deadline_ms:
        parameters["deadline_ms"] = f"{spec.deadline_ms:g}"
    target = f"{path}/{spec.endpoint}"
    if parameters:
        target += "?" + urlencode(parameters, safe=":,")
    return target

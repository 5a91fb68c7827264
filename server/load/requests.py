"""The requests of a run, as bytes that are made once and sent many times."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from urllib.parse import urlencode, urlsplit

from server.load.spec import LoadSpec


class Requests:
    """All requests that ``spec`` may send: one head for each ``r`` and picture, and the pictures."""

    def __init__(self, spec: LoadSpec) -> None:
        self._pictures = [picture.content for picture in spec.pictures]
        self._heads = {
            r: [_head(spec, r, len(content)) for content in self._pictures]
            for r in dict.fromkeys(spec.r)
        }

    def bytes_of(self, r: str, picture: int) -> tuple[bytes, bytes]:
        """Head and body of the request for ``picture`` at ``r``."""
        return self._heads[r][picture], self._pictures[picture]


def draws(spec: LoadSpec) -> Iterator[tuple[str, int]]:
    """What each request asks for, one after another: ``r``, and the index of its picture."""
    random = Random(f"{spec.seed}/what")
    while True:
        yield random.choice(spec.r), random.randrange(len(spec.pictures))


def _head(spec: LoadSpec, r: str, length: int) -> bytes:
    parts = urlsplit(spec.url)
    asked = {
        "r": r,
        "model": spec.model,
        "deadline_ms": f"{spec.deadline_ms:g}" if spec.deadline_ms else "",
    }
    query = urlencode({name: value for name, value in asked.items() if value}, safe=":,")
    path = f"{parts.path.rstrip('/')}/{spec.endpoint}" + (f"?{query}" if query else "")
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {length}",
        "User-Agent: tome-serve-load",
        *([f"Authorization: Bearer {spec.key}"] if spec.key else []),
    ]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")

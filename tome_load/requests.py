"""What the requests of a run ask for."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from urllib.parse import urlencode, urlsplit

from server.system.unix_http import socket_path
from tome_load.spec import LoadSpec


def request_url(spec: LoadSpec, r: str) -> str:
    """Return the URL of requests at ``r``, with their parameters, without user and password."""
    base = "http://localhost"  # a Unix socket has no host
    if socket_path(spec.url) is None:
        parts = urlsplit(spec.url)
        host = parts.netloc.rpartition("@")[2]
        base = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
    parameters = {}
    if r:
        parameters["r"] = r
    if spec.model:
        parameters["model"] = spec.model
    if spec.confidence:
        parameters["confidence"] = spec.confidence
    if spec.deadline_ms:
        parameters["deadline_ms"] = f"{spec.deadline_ms:g}"
    url = f"{base}/{spec.endpoint}"
    if parameters:
        url += "?" + urlencode(parameters, safe=":,")
    return url


def draws(spec: LoadSpec) -> Iterator[tuple[str, int]]:
    """Yield a random ``r`` and the index of a random upload for each request."""
    random = Random(f"{spec.seed}/what")
    while True:
        r = random.choice(spec.r)
        upload = random.randrange(len(spec.uploads))
        yield r, upload

"""Who may ask: API keys, where some are set. Keys are kept and compared as hashes, and never logged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.contract.problem_details import respond
from server.api.contract.route_path import route_path
from server.errors import Unauthorized
from server.metrics import Metrics

# Probes carry no keys, and pages hold no data: what they load needs one. All other paths are
# closed, known or not.
OPEN_PATHS = frozenset(
    {
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
OPEN_FOLDER = "/static/"  # what pages load


class Keys:
    """A set of API keys, as SHA-256 digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __contains__(self, presented: bytes) -> bool:
        # All are compared, each in constant time: how long it takes tells nothing of any of them.
        digest = hashlib.sha256(presented).digest()
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


class Authentication:
    """ASGI middleware: if there are ``keys``, lets requests through with one of them only, or to what `is_open`."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics) -> None:
        self.app = app
        self.keys = keys
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not self.keys or is_open(route_path(scope)):
            return await self.app(scope, receive, send)
        given = list(presented(Headers(scope=scope)))
        if any(key in self.keys for key in given):
            return await self.app(scope, receive, send)
        error = Unauthorized(
            "this API key is not known"
            if given
            else "this server asks for an API key: Authorization: Bearer KEY, or X-API-Key: KEY"
        )
        self.metrics.observe_error(error)
        # RFC 6750, section 3: an error code only where there were credentials.
        challenge = 'Bearer realm="tome-serve"' + (', error="invalid_token"' if given else "")
        response = respond(
            error, scope["state"]["record"].id, {"WWW-Authenticate": challenge}, route_path(scope)
        )
        await response(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether ``path`` can be asked for without a key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def presented(headers: Headers) -> Iterator[bytes]:
    """The keys that a request brings, in either header."""
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer":
            yield key.strip().encode("latin-1")
    for value in headers.getlist("x-api-key"):
        yield value.strip().encode("latin-1")

"""Authentication by API key. Keys are stored and compared as hashes, and never logged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.contract.problem_details import problem_response
from server.api.contract.route_path import route_path
from server.api.middleware.request_context import context_of
from server.errors import Unauthorized
from server.metrics import Metrics

# Health checks and scrapes carry no key. A page holds no data: its own requests need a key. Every
# other path needs one, whether it exists or not.
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
OPEN_FOLDER = "/static/"  # the files that pages load

CHALLENGE = 'Bearer realm="tome-serve"'


class ApiKeys:
    """A set of API keys, stored as SHA-256 digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __contains__(self, key: bytes) -> bool:
        # The key is compared with every digest, each time in constant time: the duration reveals
        # nothing about any of them. any() would stop at the first match, so sum() takes a list.
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return sum(matches) > 0


class Authentication:
    """ASGI middleware: answers 401 to requests without one of ``keys``, except for an open path.

    If no keys are configured, every request passes.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, metrics: Metrics) -> None:
        self.app = app
        self.keys = keys
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not self.keys or is_open(route_path(scope)):
            return await self.app(scope, receive, send)
        presented = list(presented_keys(Headers(scope=scope)))
        if any(key in self.keys for key in presented):
            return await self.app(scope, receive, send)
        await self._refuse(bool(presented), scope, receive, send)

    async def _refuse(self, has_key: bool, scope: Scope, receive: Receive, send: Send) -> None:
        challenge = CHALLENGE
        if has_key:
            error = Unauthorized("this API key is not known")
            # RFC 6750, section 3: the error code is for requests with credentials only.
            challenge += ', error="invalid_token"'
        else:
            error = Unauthorized(
                "this server asks for an API key: Authorization: Bearer KEY, or X-API-Key: KEY"
            )
        self.metrics.observe_error(error)
        response = problem_response(
            error,
            context_of(scope).id,
            headers={"WWW-Authenticate": challenge},
            path=route_path(scope),
        )
        await response(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether ``path`` needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def presented_keys(headers: Headers) -> Iterator[bytes]:
    """Yield the keys in a request's ``Authorization`` and ``X-API-Key`` headers."""
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer":
            yield key.strip().encode("latin-1")
    for value in headers.getlist("x-api-key"):
        yield value.strip().encode("latin-1")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

"""Authentication by API key. Keys are stored and compared as hashes, and never logged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator

from starlette.datastructures import Headers

from server.errors import Unauthorized

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
ADMIN_FOLDER = "/admin/"  # has keys of its own

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


def check_key(path: str, headers: Headers, keys: ApiKeys, admin_keys: ApiKeys) -> None:
    """Raise `Unauthorized` unless ``path`` is open, or ``headers`` have one of its keys.

    Args:
        keys: without any, all paths but those for ``admin_keys`` are open.
        admin_keys: the only keys of paths below `ADMIN_FOLDER`; without any, those are like others.
    """
    if admin_keys and path.startswith(ADMIN_FOLDER):
        return _check_key(headers, admin_keys, "this path asks for the admin key")
    if not keys or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
        return
    _check_key(headers, keys, "this server asks for an API key")


def _check_key(headers: Headers, keys: ApiKeys, sentence: str) -> None:
    """Raise `Unauthorized`, which says ``sentence``, unless ``headers`` have one of ``keys``."""
    presented = list(presented_keys(headers))
    if any(key in keys for key in presented):
        return
    if presented:
        # RFC 6750, section 3: the error code is for requests with credentials only.
        challenge = f'{CHALLENGE}, error="invalid_token"'
        raise Unauthorized("this API key is not known", headers={"WWW-Authenticate": challenge})
    raise Unauthorized(
        f"{sentence}: Authorization: Bearer KEY, or X-API-Key: KEY",
        headers={"WWW-Authenticate": CHALLENGE},
    )


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

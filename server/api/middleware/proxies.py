"""Requests through a proxy that adds a path prefix, and from web pages of other origins (CORS)."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

# Headers that a page of another origin may send and read, besides those that every page may (Fetch
# standard, section 3.3).
_REQUEST_HEADERS = (
    "Authorization",
    "X-API-Key",
    "X-Request-ID",
    "Inference-Header-Content-Length",
    "traceparent",
    "tracestate",
)
_RESPONSE_HEADERS = (
    "X-Request-ID",
    "Server-Timing",
    "Retry-After",
    "X-Tome-R",
    "Inference-Header-Content-Length",
    "traceparent",
    "tracestate",
)


def with_root_path(scope: Scope, root: str) -> Scope:
    """Return ``scope`` for an application below the prefix ``root``.

    A proxy may strip the prefix or keep it, and health checks and scrapes may bypass the proxy.
    The application sees a ``path`` that starts with ``root_path`` (ASGI, HTTP connection scope).
    """
    path = scope["path"]
    if not path.startswith(f"{root}/"):
        path = root + path
    return {**scope, "path": path, "root_path": root}


def cors_options(origins: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of ``CORSMiddleware``; cookies are not allowed, as none are used."""
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "HEAD", "POST"),
        "allow_headers": _REQUEST_HEADERS,
        "expose_headers": _RESPONSE_HEADERS,
    }

"""What stands between client and server: a path that a proxy puts in front, and pages of other origins."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

# What a page of another origin may send and read beside what every page may (Fetch standard,
# section 3.3).
_ASKED = ("Authorization", "X-API-Key", "X-Request-ID", "Inference-Header-Content-Length")
_ANSWERED = (
    "X-Request-ID",
    "Server-Timing",
    "Retry-After",
    "X-Tome-R",
    "Inference-Header-Content-Length",
)


class RootPath:
    """ASGI middleware: requests that still have ``root`` in front of their path, and those that have not, are the same.

    So a proxy may strip it or leave it, and probes and scrapes go past the proxy. Inside, as ASGI
    says (HTTP connection scope), ``path`` starts with ``root_path``.
    """

    def __init__(self, app: ASGIApp, root: str) -> None:
        self.app = app
        self.root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            path = scope["path"]
            if not path.startswith(f"{self.root}/"):
                path = self.root + path
            scope = {**scope, "path": path, "root_path": self.root}
        await self.app(scope, receive, send)


def cors(origins: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of Starlette's ``CORSMiddleware``. No cookies are used, so none are allowed."""
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "POST"),
        "allow_headers": _ASKED,
        "expose_headers": _ANSWERED,
    }

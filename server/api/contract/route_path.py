"""The path of a request as the routes know it."""

from __future__ import annotations

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Return the path of a request without the ``root_path`` that a proxy adds."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))

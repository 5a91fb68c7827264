"""The path of a request, as the routes know it."""

from __future__ import annotations

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """The path that routes know: without the one that a proxy put in front."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))

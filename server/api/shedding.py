"""Refusing at little cost: under overload that is nearly all that the server does, on cores that the model needs."""

from __future__ import annotations

from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.observe import Record
from server.api.problems import respond
from server.api.proxies import route_path
from server.errors import Overloaded
from server.metrics import Metrics


class Shedding:
    """ASGI middleware: answers a POST to one of ``paths`` with 503 before its route is called, while there is no room.

    Args:
        check_room: raises `Overloaded` while no request is let in.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str], check_room: Callable[[], None], metrics: Metrics) -> None:
        self.app, self.paths, self.check_room, self.metrics = app, frozenset(paths), check_room, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] == "POST" and (path := route_path(scope)) in self.paths:
            try:
                self.check_room()
            except Overloaded as error:
                record: Record = scope["state"]["record"]
                record.route = path
                self.metrics.observe_error(error)
                return await respond(error, record.id)(scope, receive, send)
        await self.app(scope, receive, send)

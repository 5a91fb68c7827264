"""Refusing at little cost: under overload that is nearly all that the server does, on cores that the model needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.contract.problem_details import respond
from server.api.contract.route_path import route_path
from server.api.middleware.request_context import RequestContext
from server.errors import Overloaded
from server.metrics import Metrics


class LoadShedding:
    """ASGI middleware: answers a POST to one of ``routes`` with 503 before it is called, while there is no room.

    Args:
        routes: those that take images.
        check_room: raises `Overloaded` while no request is let in.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[APIRoute],
        check_room: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self.app = app
        self.routes = routes
        self.check_room = check_room
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            try:
                self.check_room()
            except Overloaded as error:
                path = route_path(scope)
                route = next((route for route in self.routes if route.path_regex.match(path)), None)
                if route is not None:
                    record: RequestContext = scope["state"]["record"]
                    record.route = route.path
                    self.metrics.observe_error(error)
                    return await respond(error, record.id, path=path)(scope, receive, send)
        await self.app(scope, receive, send)

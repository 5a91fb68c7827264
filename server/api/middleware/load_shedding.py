"""Load shedding: refusing a request before its route runs.

Under overload the server mostly refuses. A cheap refusal leaves the cores to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.contract.problem_details import problem_response
from server.api.contract.route_path import route_path
from server.api.middleware.request_context import context_of
from server.errors import Overloaded
from server.metrics import Metrics


class LoadShedding:
    """ASGI middleware: answers 503 to a POST to one of ``routes`` while no slot is free.

    Args:
        routes: the routes that take images.
        check_room: raises `Overloaded` while no request can be admitted.
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
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        try:
            self.check_room()
        except Overloaded as error:
            route = self._find_route(route_path(scope))
            if route is not None:
                return await self._refuse(error, route, scope, receive, send)
        await self.app(scope, receive, send)

    def _find_route(self, path: str) -> APIRoute | None:
        for route in self.routes:
            if route.path_regex.match(path):
                return route
        return None

    async def _refuse(
        self, error: Overloaded, route: APIRoute, scope: Scope, receive: Receive, send: Send
    ) -> None:
        context = context_of(scope)
        context.route = route.path
        self.metrics.observe_error(error)
        response = problem_response(error, context.id, path=route_path(scope))
        await response(scope, receive, send)

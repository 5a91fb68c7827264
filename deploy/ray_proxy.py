"""What Ray Serve's HTTP proxy says when the replica of a request is lost.

Ray's variable ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray_proxy:middlewares`` brings it
into the proxy. By itself the proxy ends such a request without a response, of which uvicorn makes a
500 in plain text. No client should take that for a reason to ask again. A replica that is gone is
one: this answers 503 with ``Retry-After``.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.contract.problem_details import respond
from server.errors import EngineLost

RETRY_SECONDS = 1.0
_ID = "x-request-id"


class Lost:
    """Answers for replicas that cannot any more; an ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and answer it if it comes back without a response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                name_once(MutableHeaders(scope=message))
            await send(message)

        await self._app(scope, receive, note)
        if not started:
            request_id = MutableHeaders(scope=scope).get(_ID)
            error = EngineLost(
                "the replica that had this request was lost; please retry",
                retry_after=RETRY_SECONDS,
            )
            response = respond(error, request_id, {_ID: request_id or ""}, scope["path"])
            await response(scope, receive, send)


def name_once(headers: MutableHeaders) -> None:
    """Keep the request's id as our application names it; Ray adds its own, the same, once more."""
    if len(found := headers.getlist(_ID)) > 1:
        headers[_ID] = found[0]


def middlewares() -> list[Middleware]:
    """For the proxy."""
    return [Middleware(Lost)]

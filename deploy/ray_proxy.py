"""The response of Ray Serve's HTTP proxy when the replica of a request is lost.

Set ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray_proxy:middlewares`` to install this
middleware. Without it, the proxy sends no response, and uvicorn returns a 500 in plain text, which
clients do not retry. The middleware returns 503 with ``Retry-After`` instead, which clients retry.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.contract.problem_details import problem_response
from server.errors import EngineLost

RETRY_AFTER_SECONDS = 1.0
_REQUEST_ID = "x-request-id"


class LostReplicaMiddleware:
    """ASGI middleware that responds in place of a lost replica."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request. Return 503 if the proxy sends no response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response_started = False

        async def send_and_record(message: Message) -> None:
            nonlocal response_started
            if message["type"] == "http.response.start":
                response_started = True
                deduplicate_request_id(MutableHeaders(scope=message))
            await send(message)

        await self._app(scope, receive, send_and_record)
        if not response_started:
            request_id = MutableHeaders(scope=scope).get(_REQUEST_ID)
            error = EngineLost(
                "the replica that had this request was lost; please retry",
                retry_after=RETRY_AFTER_SECONDS,
            )
            headers = {_REQUEST_ID: request_id or ""}
            response = problem_response(error, request_id, headers, scope["path"])
            await response(scope, receive, send)


def deduplicate_request_id(headers: MutableHeaders) -> None:
    """Keep one request ID header: the application and Ray both set it, to the same value."""
    request_ids = headers.getlist(_REQUEST_ID)
    if len(request_ids) > 1:
        headers[_REQUEST_ID] = request_ids[0]


def middlewares() -> list[Middleware]:
    """Return the middleware of the proxy."""
    return [Middleware(LostReplicaMiddleware)]

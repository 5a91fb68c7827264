"""HEAD wherever there is GET: the same response without its content (RFC 9110, section 9.3.2)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """ASGI middleware: handles a HEAD request as GET, and sends no content.

    It stands before the routes, so that log and metrics see the method that the client sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)
        get_scope = {**scope, "method": "GET"}

        async def send_without_content(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(get_scope, receive, send_without_content)
        finally:
            # The router notes the route in the scope that it gets; log and metrics name it.
            scope["route"] = get_scope.get("route")

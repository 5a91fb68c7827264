"""Whether a connection ends after a response, and that the client then reads it and not a reset."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.contract.asgi_extensions import LINGERING_CLOSE

LINGER_SECONDS = 2.0
# The rest of the body is useless after these (RFC 9110, sections 15.5.9 and 15.5.14).
_CLOSING_STATUSES = (408, 413)


class ConnectionClose:
    """ASGI middleware: closes connections that cannot be reused, once the client has sent its body.

    A connection ends after a response that makes the rest of the body useless, after every response
    while the server drains, and if the client asked for it. Closing a socket with unread bytes
    sends a reset, which can overtake the response (RFC 9112, section 9.6). This server's own
    connections read on by themselves (`server.api.transport.lingering`). Under another ASGI server
    the rest of the body is read and discarded here before the response ends, for `LINGER_SECONDS`
    at most.

    Args:
        is_draining: whether the server drains.
    """

    def __init__(self, app: ASGIApp, is_draining: Callable[[], bool]) -> None:
        self.app = app
        self.is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = _Exchange(scope, receive, send, self.is_draining)
        await self.app(scope, exchange.receive, exchange.send)


class _Exchange:
    """The messages of a request and its response; decides whether the connection then closes."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        is_draining: Callable[[], bool],
    ) -> None:
        self._receive = receive
        self._send = send
        self._is_draining = is_draining
        headers = Headers(scope=scope)
        self._server_lingers = LINGERING_CLOSE in scope.get("extensions", {})
        self._client_closes = _asks_to_close(scope, headers)
        self._expects_continue = "expect" in headers
        self._body_unread = (
            "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        )
        self._closing = False

    async def receive(self) -> Message:
        """Receive a message; note whether it completes the body."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._body_unread = False
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the response; hold back its end until the body is discarded."""
        if message["type"] == "http.response.start":
            self._closing = self._must_close(message["status"])
            if self._closing:
                MutableHeaders(scope=message)["Connection"] = "close"
        is_end = message["type"] == "http.response.body" and not message.get("more_body")
        if is_end and self._closing and self._body_unread and not self._server_lingers:
            await self._send({**message, "more_body": True})
            await discard_body(self._receive)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _must_close(self, status: int) -> bool:
        if self._is_draining() or self._client_closes:
            return True
        # A client that waits for "100 Continue" may or may not send its body after another
        # response, so the next bytes on the connection are ambiguous (RFC 9110, section 10.1.1).
        return self._body_unread and (status in _CLOSING_STATUSES or self._expects_continue)


def _asks_to_close(scope: Scope, headers: Headers) -> bool:
    """Return whether the connection ends after one request (RFC 9112, section 9.3).

    uvicorn keeps no connection of HTTP/1.0 alive, whatever its header says.
    """
    options = headers.get("connection", "").lower().split(",")
    return scope.get("http_version") == "1.0" or "close" in map(str.strip, options)


async def discard_body(receive: Receive) -> None:
    """Read a body to its end and discard it, for `LINGER_SECONDS` at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass

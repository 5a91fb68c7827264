"""When a connection ends after an answer, and how: so that the client reads the answer rather than a reset."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_SECONDS = 2.0
# What such a body still brings is of no use (RFC 9110, sections 15.5.9 and 15.5.14).
_CLOSING_STATUSES = (408, 413)


class ConnectionClose:
    """ASGI middleware: closes the connection where reading on makes no sense, and lingers until its client has read.

    That is after an answer that came before a useless body had been read, and after every answer
    while the server stops. A socket closed with unread bytes sends a reset, which can overtake the
    answer (RFC 9112, section 9.6).
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self.app = app
        self.draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        closing = False

        async def receive_noting() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def send_closing(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start":
                # A client that waits for "100 Continue" may or may not send its body after another
                # answer, so what comes next on the connection could not be told from it (RFC 9110,
                # section 10.1.1).
                useless = unread and (message["status"] in _CLOSING_STATUSES or "expect" in headers)
                if closing := useless or self.draining():
                    MutableHeaders(scope=message)["Connection"] = "close"
            if (
                closing
                and unread
                and message["type"] == "http.response.body"
                and not message.get("more_body")
            ):
                await send({**message, "more_body": True})
                await discard(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, receive_noting, send_closing)


async def discard(receive: Receive) -> None:
    """Read a body to its end for `LINGER_SECONDS` at most, and forget it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass

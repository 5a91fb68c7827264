"""One request through ASGI middleware, without a server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.middleware.request_context import RequestContext


@dataclass
class Exchange:
    """A request, given as messages, and the messages of its response."""

    received: list[Message] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)

    async def receive(self) -> Message:
        return self.received.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> Headers:
        return Headers(raw=self.sent[0]["headers"])


def http_scope(
    method: str = "GET", path: str = "/", headers: dict[str, str] | None = None
) -> dict[str, Any]:
    encoded = [
        (name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()
    ]
    return {"type": "http", "method": method, "path": path, "headers": encoded, "state": {}}


def body_chunks(*chunks: bytes) -> list[Message]:
    """The messages of a body, of which only the last one ends it."""
    return [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, start=1)
    ]


def run(app: ASGIApp, scope: Scope, *body: bytes) -> Exchange:
    """Send one request to ``app`` and return its exchange."""
    exchange = Exchange(received=body_chunks(*(body or (b"",))))

    async def call() -> None:
        await app(scope, exchange.receive, exchange.send)

    asyncio.run(call())
    return exchange


def answer(status: int, reads_body: bool = False) -> ASGIApp:
    """An application that answers every request with ``status`` and the body ``done``."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more_body = reads_body
        while more_body:
            more_body = (await receive())["more_body"]
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    return app


def context_of(scope: Scope) -> RequestContext:
    """The context that `RequestMiddleware` has created for a request."""
    return scope["state"]["context"]

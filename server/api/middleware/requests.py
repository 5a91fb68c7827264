"""What happens to every request before its route runs, and to its response."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.contract.asgi_extensions import LINGERING_CLOSE
from server.api.contract.problem_details import problem_response
from server.api.middleware.access_log import is_probe, log_failure, log_request
from server.api.middleware.auth import ApiKeys, check_key
from server.api.middleware.head_requests import HeadRequests
from server.api.middleware.proxies import cors_options, with_root_path
from server.api.middleware.request_context import RequestContext
from server.api.middleware.trace_context import read_trace_context
from server.errors import Overloaded, RequestError
from server.metrics.api import Metrics

if TYPE_CHECKING:
    from server.api.middleware.spans import Tracing

# nginx's status for a client that disconnects before the response. It appears in the access log and
# the metrics only.
CLIENT_CLOSED_REQUEST = 499

_VALID_ID = re.compile(r"[!-~]{1,128}")  # visible ASCII: safe in a header and in a log line

# The rest of the body is useless after these (RFC 9110, sections 15.5.9 and 15.5.14).
_CLOSING_STATUSES = (408, 413)

Endpoint = Callable[[Request], Awaitable[Response]]


class RequestMiddleware:
    """ASGI middleware: takes each request from its header to its line in the access log.

    Args:
        keys: without any, every request passes.
        admin_keys: of the paths below ``/admin``.
        image_routes: the routes that take images.
        endpoints: by path, what answers POST requests of the image routes without the way through
            ``app``, which has the same routes: most requests are such, and its routing and its
            dependencies cost more than all that happens here.
        check_room: raises `Overloaded` while no image can be admitted.
        is_closing: whether connections end after their responses.
        tracing: records spans of the requests; probes and scrapes only if their client traces them.
        cors_origins: whose pages may read the responses.
        root_path: the prefix that a proxy adds to paths.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        keys: ApiKeys | None = None,
        image_routes: Sequence[APIRoute] = (),
        endpoints: Mapping[str, Endpoint] | None = None,
        check_room: Callable[[], None] = lambda: None,
        is_closing: Callable[[], bool] = lambda: False,
        tracing: Tracing | None = None,
        cors_origins: tuple[str, ...] = (),
        root_path: str = "",
        admin_keys: ApiKeys | None = None,
    ) -> None:
        self.app = app
        self.head_app = HeadRequests(app)
        self.metrics = metrics
        self.keys = keys or ApiKeys(())
        self.admin_keys = admin_keys or ApiKeys(())
        self.has_keys = bool(self.keys) or bool(self.admin_keys)
        self.image_routes = image_routes
        self.endpoints = endpoints or {}
        self.check_room = check_room
        self.is_closing = is_closing
        self.tracing = tracing
        self.root_path = root_path
        # Outside of the check of the key: a preflight request has no key, and a page must be able
        # to read that its key is wrong.
        self.handle: ASGIApp = self._check_and_route
        if cors_origins:
            self.handle = CORSMiddleware(self._check_and_route, **cors_options(cors_origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.root_path:
            scope = with_root_path(scope, self.root_path)
        context = self._create_context(scope)
        scope.setdefault("state", {})["context"] = context
        exchange = _Exchange(scope, receive, send, context, self.is_closing)
        self.metrics.inflight_requests.inc()
        try:
            await self.handle(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_CLOSED_REQUEST
            self.metrics.cancelled.labels(context.stage).inc()
        except Exception:
            log_failure(context)
            if exchange.status:
                raise  # the response has begun; the server closes the connection
            error = RequestError("the server failed; the fault is not in the request")
            response = problem_response(error, context.id, path=context.path)
            await response(scope, exchange.receive, exchange.send)
        finally:
            self.metrics.inflight_requests.dec()
            self._finish(scope, context, exchange.status)

    async def _check_and_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request without its route, answer it by its endpoint, or pass it on."""
        context: RequestContext = scope["state"]["context"]
        response = None
        try:
            if self.has_keys:
                check_key(context.path, Headers(scope=scope), self.keys, self.admin_keys)
            if scope["method"] == "POST":
                self._shed_load(context)
                endpoint = self.endpoints.get(context.path)
                if endpoint is not None:
                    context.route = context.path
                    response = await endpoint(Request(scope, receive))
        except RequestError as error:
            self.metrics.observe_error(error)
            response = problem_response(error, context.id, path=context.path)
        if response is not None:
            return await response(scope, receive, send)
        app = self.head_app if scope["method"] == "HEAD" else self.app
        await app(scope, receive, send)

    def _shed_load(self, context: RequestContext) -> None:
        """Raise `Overloaded` if the request is for a route that takes images, and none is admitted.

        Under overload the server mostly refuses. A cheap refusal leaves the cores to the model.
        """
        try:
            self.check_room()
        except Overloaded:
            for route in self.image_routes:
                if route.path_regex.match(context.path):
                    context.route = route.path
                    raise

    def _create_context(self, scope: Scope) -> RequestContext:
        headers = first_headers(scope)
        client_id = headers.get(b"x-request-id", b"").decode("latin-1")
        context = RequestContext(
            id=client_id if client_id and _VALID_ID.fullmatch(client_id) else _new_id(),
            path=scope["path"].removeprefix(scope.get("root_path", "")),
            started=time.monotonic(),
            headers=headers,
        )
        caller = None
        if b"traceparent" in headers:
            caller = read_trace_context(Headers(scope=scope))
        if self.tracing is not None and not (caller is None and is_probe(context.path)):
            scheme = scope.get("scheme", "http")
            context.spans = self.tracing.start(scheme, context.path, caller, context.started)
            context.trace = context.spans.context
        elif caller is not None:
            context.trace = caller.child()
        return context

    def _finish(self, scope: Scope, context: RequestContext, status: int) -> None:
        """Count a request that has ended, and log it."""
        route = context.route or getattr(scope.get("route"), "path", "")
        seconds = time.monotonic() - context.started
        self.metrics.requests.labels(route, context.model, str(status)).inc()
        self.metrics.request_duration.labels(route, context.model).observe(seconds)
        if context.spans is not None:
            names = {"model": context.model, "r": context.r, "request_id": context.id}
            context.spans.end(scope["method"], route, status, **names)
        log_request(scope, context, route, status, seconds)


class Application(FastAPI):
    """FastAPI whose requests meet `RequestMiddleware` first, before any middleware of FastAPI.

    Attributes:
        requests: the middleware, around `answer_by_route`.
    """

    requests: RequestMiddleware

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan."""
        if scope["type"] != "http":
            return await super().__call__(scope, receive, send)
        scope["app"] = self  # where an endpoint finds what it works with
        await self.requests(scope, receive, send)

    async def answer_by_route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request by FastAPI's routes."""
        await super().__call__(scope, receive, send)


class _Exchange:
    """The messages of a request and its response; decides whether the connection then closes.

    A connection ends after a response that makes the rest of the body useless, after every response
    while the server drains, and if the client asked for it. Closing a socket with unread bytes
    sends a reset, which can overtake the response (RFC 9112, section 9.6). This server's own
    connections read on by themselves (`server.api.transport.lingering`). Under another ASGI server
    the rest of the body is read and discarded here before the response ends, for `LINGER_SECONDS`
    at most.

    Attributes:
        status: of the response; 0 until it begins.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        context: RequestContext,
        is_closing: Callable[[], bool],
    ) -> None:
        self._receive = receive
        self._send = send
        self._context = context
        self._is_closing = is_closing
        headers = context.headers
        self._server_lingers = LINGERING_CLOSE in scope.get("extensions", {})
        self._client_closes = _asks_to_close(scope, headers)
        self._expects_continue = b"expect" in headers
        self._body_unread = (
            b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        )
        self._closing = False
        self.status = 0

    async def receive(self) -> Message:
        """Receive a message; note whether it completes the body."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._body_unread = False
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the response; hold back its end until the body is discarded."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._closing = self._must_close()
            message["headers"] = [*message["headers"], *self._own_headers()]
        elif self._closing and not message.get("more_body"):
            message = await self._discard_body_before(message)
        await self._send(message)

    async def _discard_body_before(self, end: Message) -> Message:
        """Send the content of the last message, discard the body, and return what ends it then."""
        if not self._body_unread or self._server_lingers:
            return end
        await self._send({**end, "more_body": True})
        await discard_body(self._receive)
        return {"type": "http.response.body", "body": b""}

    def _own_headers(self) -> Iterator[tuple[bytes, bytes]]:
        yield b"x-request-id", self._context.id.encode("latin-1")
        if self._context.trace is not None:
            for name, value in self._context.trace.headers().items():
                yield name.encode("latin-1"), value.encode("latin-1")
        if self._closing:
            yield b"connection", b"close"

    def _must_close(self) -> bool:
        if self._is_closing() or self._client_closes:
            return True
        # A client that waits for "100 Continue" may or may not send its body after another
        # response, so the next bytes on the connection are ambiguous (RFC 9110, section 10.1.1).
        is_useless = self.status in _CLOSING_STATUSES or self._expects_continue
        return self._body_unread and is_useless


def first_headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers of a request by their names, the first of each name."""
    return dict(reversed(scope["headers"]))


def _new_id() -> str:
    """Return 32 hexadecimal digits; unique, but no secret."""
    return f"{random.getrandbits(128):032x}"


def _asks_to_close(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the connection ends after one request (RFC 9112, section 9.3).

    uvicorn keeps no connection of HTTP/1.0 alive, whatever its header says.
    """
    if scope.get("http_version") == "1.0":
        return True
    options = headers.get(b"connection", b"").lower().split(b",")
    return b"close" in map(bytes.strip, options)


# For how long a client may still send a body that nobody needs.
LINGER_SECONDS = 2.0


async def discard_body(receive: Receive) -> None:
    """Read a body to its end and discard it, for `LINGER_SECONDS` at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass

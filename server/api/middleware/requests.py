"""What happens to every request before its route runs, and to its response."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
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


class RequestMiddleware:
    """ASGI middleware: takes each request from its header to its line in the access log.

    Args:
        keys: without any, every request passes.
        image_routes: the routes that take images.
        check_room: raises `Overloaded` while no image can be admitted.
        is_draining: whether the server drains.
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
        check_room: Callable[[], None] = lambda: None,
        is_draining: Callable[[], bool] = lambda: False,
        tracing: Tracing | None = None,
        cors_origins: tuple[str, ...] = (),
        root_path: str = "",
    ) -> None:
        self.app = app
        self.head_app = HeadRequests(app)
        self.metrics = metrics
        self.keys = keys or None
        self.image_routes = image_routes
        self.check_room = check_room
        self.is_draining = is_draining
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
        exchange = _Exchange(scope, receive, send, context, self.is_draining)
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
        """Refuse a request without its route, or pass it on."""
        context: RequestContext = scope["state"]["context"]
        try:
            if self.keys is not None:
                check_key(context.path, Headers(scope=scope), self.keys)
            if scope["method"] == "POST":
                self._shed_load(context)
        except RequestError as error:
            self.metrics.observe_error(error)
            response = problem_response(error, context.id, path=context.path)
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
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        context = RequestContext(
            id=client_id if _VALID_ID.fullmatch(client_id) else uuid.uuid4().hex,
            path=scope["path"].removeprefix(scope.get("root_path", "")),
            started=time.monotonic(),
        )
        caller = read_trace_context(headers) if "traceparent" in headers else None
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
        is_draining: Callable[[], bool],
    ) -> None:
        self._receive = receive
        self._send = send
        self._context = context
        self._is_draining = is_draining
        headers = Headers(scope=scope)
        self._server_lingers = LINGERING_CLOSE in scope.get("extensions", {})
        self._client_closes = _asks_to_close(scope, headers)
        self._expects_continue = "expect" in headers
        self._body_unread = (
            "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
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
            self._add_headers(MutableHeaders(scope=message))
        is_end = message["type"] == "http.response.body" and not message.get("more_body")
        if is_end and self._closing and self._body_unread and not self._server_lingers:
            await self._send({**message, "more_body": True})
            await discard_body(self._receive)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers["X-Request-ID"] = self._context.id
        if self._context.trace is not None:
            headers.update(self._context.trace.headers())
        if self._closing:
            headers["Connection"] = "close"

    def _must_close(self) -> bool:
        if self._is_draining() or self._client_closes:
            return True
        # A client that waits for "100 Continue" may or may not send its body after another
        # response, so the next bytes on the connection are ambiguous (RFC 9110, section 10.1.1).
        is_useless = self.status in _CLOSING_STATUSES or self._expects_continue
        return self._body_unread and is_useless


def _asks_to_close(scope: Scope, headers: Headers) -> bool:
    """Return whether the connection ends after one request (RFC 9112, section 9.3).

    uvicorn keeps no connection of HTTP/1.0 alive, whatever its header says.
    """
    options = headers.get("connection", "").lower().split(",")
    return scope.get("http_version") == "1.0" or "close" in map(str.strip, options)


# For how long a client may still send a body that nobody needs.
LINGER_SECONDS = 2.0


async def discard_body(receive: Receive) -> None:
    """Read a body to its end and discard it, for `LINGER_SECONDS` at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass

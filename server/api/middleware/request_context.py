"""The context of each request: its id, its metrics, its line in the access log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders, State
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.contract.problem_details import problem_response
from server.api.contract.route_path import route_path
from server.api.middleware.trace_context import TraceContext, read_trace_context
from server.errors import RequestError
from server.metrics import Metrics

if TYPE_CHECKING:
    from server.api.middleware.spans import RequestSpans, Tracing

log = logging.getLogger("tome.access")

# nginx's status for a client that disconnects before the response. It appears in the access log and
# the metrics only.
CLIENT_CLOSED_REQUEST = 499

# Health checks and scrapes come every few seconds. Only their failures are worth a log line.
_QUIET_ROUTES = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{name}/ready",
)
_VALID_ID = re.compile(r"[!-~]{1,128}")  # visible ASCII: safe in a header and in a log line


@dataclass
class RequestContext:
    """The state of one request, updated while it is processed.

    Attributes:
        id: from ``X-Request-ID``, or generated.
        started: when the request's headers arrived, ``time.monotonic()`` seconds.
        model: the requested model; empty until the parameters are parsed.
        r: the requested schedule; after inference the one that was used.
        route: the path of the route, if middleware answers instead of the route.
        stage: the current stage: ``body``, ``decode``, ``queue`` or ``picture``.
        stages: milliseconds of each finished stage; of several images the longest.
        trace: this request as an operation of the client's trace; None outside a trace.
        spans: records what this request does, if spans are recorded.
    """

    id: str
    started: float
    model: str = ""
    r: str = ""
    route: str = ""
    stage: str = "body"
    stages: dict[str, float] = field(default_factory=dict)
    trace: TraceContext | None = None
    spans: RequestSpans | None = None

    def record_stage(self, stage: str, seconds: float) -> float:
        """Record the time of a finished stage. Return it in milliseconds, rounded for display."""
        milliseconds = _rounded_milliseconds(seconds)
        self.stages[stage] = max(milliseconds, self.stages.get(stage, 0.0))
        return milliseconds

    def record_span(
        self, stage: str, started: float, seconds: float, **attributes: str | int
    ) -> None:
        """Record the span of a stage that began at ``started``, if spans are recorded."""
        if self.spans is not None:
            self.spans.record(stage, started, seconds, **attributes)

    def record_run(
        self, submitted: float, queue_seconds: float, forward_seconds: float, batch_size: int
    ) -> None:
        """Record the spans of an image in the engine: its wait since ``submitted``, and its run."""
        self.record_span("queue", submitted, queue_seconds, model=self.model)
        self.record_span(
            "forward",
            submitted + queue_seconds,
            forward_seconds,
            model=self.model,
            r=self.r,
            batch_size=batch_size,
        )


def context_of(scope: Scope) -> RequestContext:
    """Return the context of a request; `RequestContextMiddleware` has created it."""
    context: RequestContext = State(scope["state"]).context
    return context


class RequestContextMiddleware:
    """ASGI middleware: gives every request its id, its line in the access log and its metrics.

    It wraps all middleware that answers requests.

    Args:
        tracing: records spans of the requests; probes and scrapes only if their client traces them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        context = self._create_context(scope)
        State(scope.setdefault("state", {})).context = context
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = context.id
                if context.trace is not None:
                    headers.update(context.trace.headers())
            await send(message)

        self.metrics.inflight_requests.inc()
        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
            self.metrics.cancelled.labels(context.stage).inc()
        except Exception:
            log.exception(
                "a request failed unexpectedly",
                extra={"request_id": context.id, **_trace_fields(context)},
            )
            if status:
                raise  # the response has begun; the server closes the connection
            error = RequestError("the server failed; the fault is not in the request")
            response = problem_response(error, context.id, path=route_path(scope))
            await response(scope, receive, send_with_id)
        finally:
            self.metrics.inflight_requests.dec()
            self._finish(scope, context, status)

    def _create_context(self, scope: Scope) -> RequestContext:
        headers = Headers(scope=scope)
        context = RequestContext(request_id(headers), time.monotonic())
        caller = read_trace_context(headers)
        path = route_path(scope)
        if self.tracing is not None and not (caller is None and is_probe(path)):
            scheme = scope.get("scheme", "http")
            context.spans = self.tracing.start(scheme, path, caller, context.started)
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
        level = logging.INFO
        if route in _QUIET_ROUTES and status < 400:
            level = logging.DEBUG
        if log.isEnabledFor(level):
            log.log(level, "request", extra=_log_fields(scope, context, route, status, seconds))


def request_id(headers: Headers) -> str:
    """Return the client's ``X-Request-ID`` if it is valid, else a new id."""
    client_id = headers.get("x-request-id", "")
    return client_id if _VALID_ID.fullmatch(client_id) else uuid.uuid4().hex


def is_probe(path: str) -> bool:
    """Return whether ``path`` is that of a health check or a scrape."""
    return path in _QUIET_ROUTES or (path.startswith("/v2/") and path.endswith("/ready"))


def _log_fields(
    scope: Scope, context: RequestContext, route: str, status: int, seconds: float
) -> dict[str, Any]:
    client = scope.get("client")  # None for a Unix socket
    stages = {f"{stage}_ms": milliseconds for stage, milliseconds in context.stages.items()}
    return {
        "request_id": context.id,
        "client": client[0] if client else "",
        "method": scope["method"],
        "route": route,
        "status": status,
        "model": context.model,
        "r": context.r,
        "duration_ms": _rounded_milliseconds(seconds),
        **stages,
        **_trace_fields(context),
    }


def _trace_fields(context: RequestContext) -> dict[str, str]:
    if context.trace is None:
        return {}
    return {"trace_id": context.trace.trace_id, "span_id": context.trace.span_id}


def _rounded_milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)

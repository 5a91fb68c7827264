"""What is known of each request: its id, its metrics, its line in the access log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.contract.problem_details import respond
from server.api.contract.route_path import route_path
from server.errors import RequestError
from server.metrics import Metrics

log = logging.getLogger("tome.access")

CLIENT_CLOSED_REQUEST = (
    499  # nginx's number for it; only in the log and the metrics, since nobody is there to read it
)
_PROBES = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{name}/ready",
)
_SANE_ID = re.compile(r"[!-~]{1,128}")


@dataclass
class RequestContext:
    """One request, filled in on its way.

    Attributes:
        route: the path of the route, where it was answered before its route was called.
        started: when its headers arrived, ``time.monotonic()`` seconds.
        stage: where it is: ``body``, ``decode``, ``queue`` or ``picture``.
        stages: milliseconds of each stage that is over; the longest one where several images were
            sent together.
    """

    id: str
    started: float
    model: str = ""
    r: str = ""
    route: str = ""
    stage: str = "body"
    stages: dict[str, float] = field(default_factory=dict)

    def note(self, stage: str, seconds: float) -> float:
        """A stage is over. Returns its time in milliseconds, rounded for people."""
        milliseconds = round(seconds * 1000, 3)
        self.stages[stage] = max(milliseconds, self.stages.get(stage, 0.0))
        return milliseconds


class RequestContextMiddleware:
    """ASGI middleware around all of ours: every request gets its id, its log line and its counts."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = RequestContext(request_id(Headers(scope=scope)), time.monotonic())
        scope.setdefault("state", {})["record"] = record
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record.id
            await send(message)

        self.metrics.inflight_requests.inc()
        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
            self.metrics.cancelled.labels(record.stage).inc()
        except Exception:
            log.exception("a request failed unexpectedly", extra={"request_id": record.id})
            if status:
                raise  # too late to say so; the server cuts the connection
            error = RequestError("the server failed; the fault is not in the request")
            problem = respond(error, record.id, path=route_path(scope))
            await problem(scope, receive, send_with_id)
        finally:
            self.metrics.inflight_requests.dec()
            self._finish(scope, record, status)

    def _finish(self, scope: Scope, record: RequestContext, status: int) -> None:
        route = record.route or getattr(scope.get("route"), "path", "")
        seconds = time.monotonic() - record.started
        self.metrics.requests.labels(route, record.model, str(status)).inc()
        self.metrics.request_duration.labels(route, record.model).observe(seconds)
        # Probes and scrapes come every few seconds and say nothing; their failures do.
        level = logging.DEBUG if route in _PROBES and status < 400 else logging.INFO
        if not log.isEnabledFor(level):
            return
        line: dict[str, Any] = {
            "request_id": record.id,
            "client": scope["client"][0] if scope.get("client") else "",
            "method": scope["method"],
            "route": route,
            "status": status,
            "model": record.model,
            "r": record.r,
            "duration_ms": round(seconds * 1000, 3),
            **{f"{stage}_ms": milliseconds for stage, milliseconds in record.stages.items()},
        }
        log.log(level, "request", extra=line)


def request_id(headers: Headers) -> str:
    """The client's own id, where it is one that can stand in a header and a log line; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex

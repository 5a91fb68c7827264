"""The line of a request in the access log."""

from __future__ import annotations

import logging

from starlette.types import Scope

from server.api.middleware.request_context import RequestContext

log = logging.getLogger("tome.access")

# Health checks and scrapes come every few seconds. Only their failures are worth a log line.
_QUIET_ROUTES = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{name}/ready",
)


def is_probe(path: str) -> bool:
    """Return whether ``path`` is that of a health check or a scrape."""
    return path in _QUIET_ROUTES or (path.startswith("/v2/") and path.endswith("/ready"))


def log_request(
    scope: Scope, context: RequestContext, route: str, status: int, seconds: float
) -> None:
    """Log a request that has ended."""
    is_quiet = route in _QUIET_ROUTES and status < 400
    level = logging.DEBUG if is_quiet else logging.INFO
    if not log.isEnabledFor(level):
        return
    client = scope.get("client")  # None for a Unix socket
    stages = {f"{stage}_ms": milliseconds for stage, milliseconds in context.stages.items()}
    fields = {
        "request_id": context.id,
        "client": client[0] if client else "",
        "method": scope["method"],
        "route": route,
        "status": status,
        "model": context.model,
        "r": context.r,
        "duration_ms": round(seconds * 1000, 3),
        **stages,
        **_cascade_fields(context),
        **_trace_fields(context),
    }
    log.log(level, "request", extra=fields)


def log_failure(context: RequestContext) -> None:
    """Log the exception that is being handled."""
    log.exception(
        "a request failed unexpectedly",
        extra={"request_id": context.id, **_trace_fields(context)},
    )


def _cascade_fields(context: RequestContext) -> dict[str, dict[str, int]]:
    """Return how the images of a request with ``confidence`` ended; nothing for others."""
    if not context.endings:
        return {}
    return {"confidence": {str(ended): count for ended, count in context.endings.items()}}


def _trace_fields(context: RequestContext) -> dict[str, str]:
    if context.trace is None:
        return {}
    return {"trace_id": context.trace.trace_id, "span_id": context.trace.span_id}

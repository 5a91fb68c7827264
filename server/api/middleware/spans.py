"""The spans of requests, by OpenTelemetry, which is imported here and by no other module.

`tracing.py` imports this one if spans are configured. Attributes have the names of OpenTelemetry's
semantic conventions for HTTP servers, or begin with ``tome.``.
"""

from __future__ import annotations

import logging
import threading
import time

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from server.api.middleware.trace_context import TraceContext
from server.settings import VERSION

log = logging.getLogger("tome.server")

SERVICE_NAME = "tome-serve"
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
_OTHER_METHOD = "_OTHER"


class RequestSpans:
    """The span of one request, and those of its stages.

    Attributes:
        context: the span of the request, in its trace.
    """

    def __init__(self, tracer: Tracer, span: Span, context: TraceContext) -> None:
        self._tracer = tracer
        self._span = span
        self._clock_offset = time.time_ns() - _nanoseconds(time.monotonic())
        self.context = context

    def record(self, stage: str, started: float, seconds: float, **attributes: str | int) -> None:
        """Record a stage that is over.

        Args:
            started: ``time.monotonic()`` seconds.
            attributes: of the span, with ``tome.`` before their names.
        """
        if not self._span.is_recording():
            return
        begin = _nanoseconds(started) + self._clock_offset
        child = self._tracer.start_span(
            stage,
            context=set_span_in_context(self._span),
            start_time=begin,
            attributes={f"tome.{name}": value for name, value in attributes.items()},
        )
        child.end(begin + _nanoseconds(seconds))

    def end(self, method: str, route: str, status: int, **attributes: str) -> None:
        """End the span of the request.

        Args:
            route: its template; empty if no route has this path.
            status: 0 if there is no response.
            attributes: as those of `record`; empty ones are left out.
        """
        if self._span.is_recording():
            known_method = method if method in _METHODS else _OTHER_METHOD
            name = known_method if known_method != _OTHER_METHOD else "HTTP"
            self._span.update_name(f"{name} {route}".strip())
            self._span.set_attribute("http.request.method", known_method)
            if status:
                self._span.set_attribute("http.response.status_code", status)
            named = {f"tome.{name}": value for name, value in attributes.items()}
            for attribute, value in {"http.route": route, **named}.items():
                if value:
                    self._span.set_attribute(attribute, value)
            if status >= 500 or not status:
                self._mark_failed(status)
        self._span.end()

    def _mark_failed(self, status: int) -> None:
        self._span.set_status(StatusCode.ERROR)
        self._span.set_attribute("error.type", str(status))


class Tracing:
    """Starts the spans of requests, and exports them until `shutdown`.

    Attributes:
        resource: what the spans say about this process.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self.resource = dict(provider.resource.attributes)
        self._tracer = provider.get_tracer(SERVICE_NAME, VERSION)

    def start(
        self, scheme: str, path: str, caller: TraceContext | None, started: float
    ) -> RequestSpans:
        """Start the span of a request that arrived at ``started``, ``time.monotonic()`` seconds.

        Args:
            caller: the operation that is its parent; whether that is sampled decides whether this
                is, unless ``OTEL_TRACES_SAMPLER`` says otherwise.
        """
        elapsed = time.monotonic() - started
        span = self._tracer.start_span(
            "HTTP",
            context=_parent_context(caller),
            kind=SpanKind.SERVER,
            start_time=time.time_ns() - _nanoseconds(elapsed),
            attributes={"url.path": path, "url.scheme": scheme},
        )
        own = span.get_span_context()
        context = TraceContext(
            f"{own.trace_id:032x}",
            f"{own.span_id:016x}",
            own.trace_flags.sampled,
            own.trace_state.to_header(),
        )
        return RequestSpans(self._tracer, span, context)

    def shutdown(self, timeout: float) -> None:
        """Export the spans that are left, for ``timeout`` seconds at most, and no others."""
        # In a thread: an exporter may retry for longer than anybody waits.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            log.warning("spans may be lost: they were not exported within %g s", timeout)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _parent_context(caller: TraceContext | None) -> Context:
    """Return OpenTelemetry's context of the caller's operation; an empty one without a caller."""
    if caller is None:
        return Context()
    parent = SpanContext(
        int(caller.trace_id, 16),
        int(caller.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if caller.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([caller.state]),
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())

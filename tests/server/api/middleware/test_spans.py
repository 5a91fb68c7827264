"""The spans of a request, as OpenTelemetry's SDK exports them."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import Receive, Scope, Send

from server.api.middleware.requests import RequestMiddleware
from server.api.middleware.spans import Tracing
from server.api.middleware.trace_context import read_trace_context
from server.ipc.messages import Failure
from server.metrics.api import Metrics
from tests.server.api.middleware.asgi import Exchange, answer, context_of, http_scope, run
from tests.server.api.middleware.test_trace_context import PARENT, TRACE
from tests.server.api.pipeline.image_pipeline import Pipeline, result_of
from tests.server.api.pipeline.test_cascade import UNCERTAIN
from tests.server.api.pipeline.test_cascade import infer as cascade_answer
from tests.server.wire import SNEAKER


class Recorder:
    """A tracing whose spans are kept in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def run(self, app: Any, **scope: Any) -> Exchange:
        middleware = RequestMiddleware(app, Metrics(), tracing=self.tracing)
        return run(middleware, http_scope(**scope))


def caller(flags: str) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{PARENT}-{flags}", "tracestate": "foo=1"}


def routed(status: int) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context_of(scope).route = "/classify"
        context_of(scope).model = "tiny"
        await answer(status)(scope, receive, send)

    return app


def test_a_request_is_a_span_below_that_of_its_client() -> None:
    recorder = Recorder()
    exchange = recorder.run(routed(200), method="POST", path="/classify", headers=caller("01"))
    (span,) = recorder.spans().values()
    assert (span.name, span.kind) == ("POST /classify", SpanKind.SERVER)
    assert span.parent is not None and span.parent.is_remote
    assert f"{span.parent.span_id:016x}" == PARENT
    own = read_trace_context(exchange.headers)
    assert own is not None
    assert own.trace_id == f"{span.context.trace_id:032x}" == TRACE
    assert own.span_id == f"{span.context.span_id:016x}"
    assert (own.sampled, own.state) == (True, "foo=1")
    assert dict(span.attributes or {}) == {
        "url.path": "/classify",
        "url.scheme": "http",
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/classify",
        "tome.model": "tiny",
        "tome.request_id": exchange.headers["x-request-id"],
    }
    assert span.status.status_code == StatusCode.UNSET


def test_a_request_without_a_trace_begins_one() -> None:
    recorder = Recorder()
    exchange = recorder.run(routed(200))
    (span,) = recorder.spans().values()
    assert span.parent is None
    own = read_trace_context(exchange.headers)
    assert own is not None
    assert own.trace_id == f"{span.context.trace_id:032x}"


def test_a_client_that_does_not_sample_is_followed() -> None:
    recorder = Recorder()
    exchange = recorder.run(routed(200), headers=caller("00"))
    assert recorder.spans() == {}
    own = read_trace_context(exchange.headers)
    assert own is not None
    assert (own.trace_id, own.sampled) == (TRACE, False)


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, StatusCode.UNSET), (503, StatusCode.ERROR)],
)
def test_only_a_failure_of_the_server_is_an_error(status: int, code: StatusCode) -> None:
    recorder = Recorder()
    recorder.run(answer(status), method="BREW", path="/coffee")
    (span,) = recorder.spans().values()
    assert (span.name, span.status.status_code) == ("HTTP", code)
    attributes = dict(span.attributes or {})
    assert attributes["http.request.method"] == "_OTHER"
    assert attributes.get("error.type") == (str(status) if status >= 500 else None)


def test_probes_are_spans_only_in_the_trace_of_their_client() -> None:
    recorder = Recorder()
    for path in ("/healthz", "/readyz", "/metrics", "/v2/models/tiny/ready"):
        recorder.run(answer(200), path=path)
    assert recorder.spans() == {}
    recorder.run(answer(200), path="/healthz", headers=caller("01"))
    assert len(recorder.spans()) == 1


def test_the_stages_of_an_image_are_spans_below_the_request() -> None:
    recorder = Recorder()
    result = result_of()
    # Binary fractions: sums with the clock lose no nanosecond, however long the machine has run.
    outcome = result.outcome._replace(queue_seconds=0.25)
    batch = replace(result.batch, forward_seconds=0.125)
    pipeline = Pipeline([result._replace(outcome=outcome, batch=batch)])
    context = pipeline.context
    context.started = 5.0
    context.model = "tiny"
    context.spans = recorder.tracing.start("http", "/classify", None, context.started)
    pipeline.infer([SNEAKER])
    context.spans.end("POST", "/classify", 200)
    spans = recorder.spans()
    request = spans.pop("POST /classify")
    assert set(spans) == {"body", "decode", "queue", "forward"}
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
    assert dict(spans["forward"].attributes or {}) == {
        "tome.model": "tiny",
        "tome.r": "1",
        "tome.batch_size": 1,
    }
    times = [
        (span.start_time or 0, span.end_time or 0)
        for span in (spans[name] for name in ("body", "decode", "queue", "forward"))
    ]
    assert times == sorted(times)
    queue, forward = times[2:]
    assert queue[1] - queue[0] == 250_000_000
    assert forward[0] == queue[1]
    assert forward[1] - forward[0] == 125_000_000


def test_a_second_pass_without_a_result_is_a_span_that_says_why() -> None:
    recorder = Recorder()
    pipeline = Pipeline([UNCERTAIN, result_of(Failure.FAILED)])
    context = pipeline.context
    context.model = "tiny"
    context.spans = recorder.tracing.start("http", "/classify", None, context.started)
    cascade_answer(pipeline)
    context.spans.end("POST", "/classify", 200)
    assert dict(recorder.spans()["second_pass"].attributes or {}) == {
        "tome.model": "tiny",
        "tome.r": "0",
        "tome.result": "failed",
    }


def test_an_export_that_hangs_does_not_keep_the_server_from_stopping(
    caplog: pytest.LogCaptureFixture,
) -> None:
    may_end = threading.Event()

    class Hanging(InMemorySpanExporter):
        def shutdown(self) -> None:
            may_end.wait(60)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Hanging()))
    with caplog.at_level(logging.WARNING, "tome.server"):
        Tracing(provider).shutdown(timeout=0.01)
    may_end.set()
    assert "spans may be lost" in caplog.text


def test_a_request_that_is_cancelled_ends_its_span() -> None:
    recorder = Recorder()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Future()

    async def cancelled() -> None:
        middleware = RequestMiddleware(app, Metrics(), tracing=recorder.tracing)
        exchange = Exchange()
        task = asyncio.ensure_future(middleware(http_scope(), exchange.receive, exchange.send))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    (span,) = recorder.spans().values()
    assert span.status.status_code == StatusCode.ERROR
    assert "http.response.status_code" not in (span.attributes or {})

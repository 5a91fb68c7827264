"""The id, the log line and the metrics of a request."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from server.api.middleware.request_context import (
    RequestContext,
    RequestContextMiddleware,
    context_of,
    request_id,
)
from server.metrics import Metrics
from tests.server.api.middleware.asgi import Exchange, answer, http_scope, run


def failing(error: Exception, after_start: bool = False):
    """An application that raises ``error``, before its response or once it has begun."""

    async def app(scope, receive, send):
        if after_start:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    return app


def access_line(caplog) -> logging.LogRecord:
    (line,) = [line for line in caplog.records if line.message == "request"]
    return line


@pytest.mark.parametrize("valid", ["abc-123", "x" * 128, "!~"])
def test_the_id_of_a_client_is_kept(valid):
    assert request_id(Headers({"x-request-id": valid})) == valid


@pytest.mark.parametrize("invalid", ["", "a b", "x" * 129, "a\nb", "é"])
def test_an_id_that_is_unsafe_in_a_header_or_a_log_line_is_replaced(invalid):
    generated = request_id(Headers({"x-request-id": invalid}))
    assert generated != invalid
    assert len(generated) == 32


def test_of_several_images_the_longest_stage_counts():
    context = RequestContext("id", started=0.0)
    assert context.record_stage("decode", 0.0021) == 2.1
    assert context.record_stage("decode", 0.001) == 1.0
    assert context.stages == {"decode": 2.1}


def test_a_response_has_the_id_of_its_context():
    scope = http_scope()
    exchange = run(RequestContextMiddleware(answer(200), Metrics((0,))), scope)
    assert exchange.headers["x-request-id"] == context_of(scope).id


def test_an_unexpected_error_gets_a_problem_without_its_text():
    app = RequestContextMiddleware(failing(ValueError("secret")), Metrics((0,)))
    exchange = run(app, http_scope())
    assert exchange.status == 500
    problem = json.loads(exchange.sent[1]["body"])
    assert problem["type"] == "urn:tome:problem:internal"
    assert "secret" not in str(problem)


def test_an_error_after_the_response_has_begun_is_raised():
    app = RequestContextMiddleware(failing(ValueError(), after_start=True), Metrics((0,)))
    exchange = Exchange()
    with pytest.raises(ValueError):
        asyncio.run(app(http_scope(), exchange.receive, exchange.send))
    assert len(exchange.sent) == 1


def test_a_client_that_disconnects_is_counted_with_its_stage(caplog):
    metrics = Metrics((0,))
    with caplog.at_level(logging.INFO, "tome.access"):
        exchange = run(RequestContextMiddleware(failing(ClientDisconnect()), metrics), http_scope())
    assert exchange.sent == []
    assert vars(access_line(caplog))["status"] == 499
    counted = metrics.registry.get_sample_value("tome_cancelled_total", {"stage": "body"})
    assert counted == 1


@pytest.mark.parametrize(
    ("path", "status", "level"),
    [
        ("/healthz", 200, logging.DEBUG),
        ("/healthz", 503, logging.INFO),
        ("/classify", 200, logging.INFO),
    ],
)
def test_only_successful_health_checks_are_quiet(caplog, path, status, level):
    async def app(scope, receive, send):
        context_of(scope).route = path
        await answer(status)(scope, receive, send)

    with caplog.at_level(logging.DEBUG, "tome.access"):
        run(RequestContextMiddleware(app, Metrics((0,))), http_scope(path=path))
    assert access_line(caplog).levelno == level

"""The id, the log line and the metrics of a request."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from starlette.requests import ClientDisconnect

from server.api.middleware.requests import RequestMiddleware
from server.metrics.api import Metrics
from tests.server.api.middleware.asgi import Exchange, answer, context_of, http_scope, run


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


def id_of(client_id: str) -> str:
    scope = http_scope(headers={"x-request-id": client_id})
    exchange = run(RequestMiddleware(answer(200), Metrics()), scope)
    assert exchange.headers["x-request-id"] == context_of(scope).id
    return context_of(scope).id


def test_the_log_says_how_images_with_confidence_ended(caplog):
    async def app(scope, receive, send):
        for ended in ("certain", "failed", "certain"):
            context_of(scope).count_ending(ended)
        await answer(200)(scope, receive, send)

    caplog.set_level(logging.INFO, "tome.access")
    run(RequestMiddleware(app, Metrics()), http_scope())
    assert vars(access_line(caplog))["confidence"] == {"certain": 2, "failed": 1}
    caplog.clear()
    run(RequestMiddleware(answer(200), Metrics()), http_scope())
    assert "confidence" not in vars(access_line(caplog))


@pytest.mark.parametrize("valid", ["abc-123", "x" * 128, "!~"])
def test_the_id_of_a_client_is_kept(valid):
    assert id_of(valid) == valid


@pytest.mark.parametrize("invalid", ["", "a b", "x" * 129, "a\nb", "é"])
def test_an_id_that_is_unsafe_in_a_header_or_a_log_line_is_replaced(invalid):
    assert len(id_of(invalid)) == 32


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/classify", "", "/classify"),
        ("/classify", "/vision", "/classify"),
        ("/vision/classify", "/vision", "/classify"),
        ("/vision/vision/classify", "/vision", "/vision/classify"),
    ],
)
def test_the_path_has_no_prefix_of_a_proxy(path, root_path, expected):
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope)
        await answer(200)(scope, receive, send)

    scope = http_scope(path=path)
    run(RequestMiddleware(app, Metrics(), root_path=root_path), scope)
    assert context_of(scope).path == expected
    # The router finds its path below the prefix.
    assert seen["path"] == root_path + expected
    assert seen.get("root_path", "") == root_path


def test_an_unexpected_error_gets_a_problem_without_its_text():
    app = RequestMiddleware(failing(ValueError("secret")), Metrics())
    exchange = run(app, http_scope())
    assert exchange.status == 500
    problem = json.loads(exchange.sent[1]["body"])
    assert problem["type"] == "urn:tome:problem:internal"
    assert "secret" not in str(problem)


def test_an_error_after_the_response_has_begun_is_raised():
    app = RequestMiddleware(failing(ValueError(), after_start=True), Metrics())
    exchange = Exchange()
    with pytest.raises(ValueError):
        asyncio.run(app(http_scope(), exchange.receive, exchange.send))
    assert len(exchange.sent) == 1


def test_a_client_that_disconnects_is_counted_with_its_stage(caplog):
    metrics = Metrics()
    with caplog.at_level(logging.INFO, "tome.access"):
        exchange = run(RequestMiddleware(failing(ClientDisconnect()), metrics), http_scope())
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
        run(RequestMiddleware(app, Metrics()), http_scope(path=path))
    assert access_line(caplog).levelno == level

"""When a connection closes after a response, and that the client has sent its body by then."""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.types import ASGIApp

from server.api.contract.asgi_extensions import LINGERING_CLOSE
from server.api.middleware import requests
from server.api.middleware.requests import RequestMiddleware, discard_body
from server.metrics.api import Metrics
from tests.server.api.middleware.asgi import answer, http_scope, run

BODY = {"Content-Length": "8"}


def middleware(app: ASGIApp, draining: bool = False) -> RequestMiddleware:
    return RequestMiddleware(app, Metrics(), is_closing=lambda: draining)


@pytest.mark.parametrize("status", [408, 413])
def test_a_response_that_makes_the_rest_of_the_body_useless_closes(status):
    app = middleware(answer(status))
    exchange = run(app, http_scope("POST", headers=BODY), b"some", b"more")
    assert exchange.headers["connection"] == "close"
    # The body is read to its end before the response ends.
    assert exchange.received == []
    assert [message.get("more_body", False) for message in exchange.sent[1:]] == [True, False]
    assert b"".join(message["body"] for message in exchange.sent[1:]) == b"done"


@pytest.mark.parametrize(
    ("version", "headers"),
    [("1.0", BODY), ("1.1", {**BODY, "Connection": "Keep-Alive, Close"})],
)
def test_every_response_closes_if_the_client_does_not_keep_the_connection(version, headers):
    scope = {**http_scope("POST", headers=headers), "http_version": version}
    exchange = run(middleware(answer(422)), scope, b"some", b"more")
    assert exchange.headers["connection"] == "close"
    assert exchange.received == []


def test_a_server_that_lingers_discards_the_body_itself():
    scope = {**http_scope("POST", headers=BODY), "extensions": {LINGERING_CLOSE: {}}}
    exchange = run(middleware(answer(413)), scope, b"some", b"more")
    assert exchange.headers["connection"] == "close"
    assert len(exchange.received) == len(exchange.sent) == 2


@pytest.mark.parametrize("status", [200, 422])
def test_other_responses_keep_the_connection(status):
    app = middleware(answer(status))
    exchange = run(app, http_scope("POST", headers=BODY), b"some", b"more")
    assert "connection" not in exchange.headers
    assert len(exchange.received) == 2


def test_a_body_that_was_read_closes_nothing():
    app = middleware(answer(413, reads_body=True))
    exchange = run(app, http_scope("POST", headers=BODY), b"some", b"more")
    assert "connection" not in exchange.headers


def test_a_client_that_expects_100_continue_gets_its_early_response_on_a_closing_connection():
    app = middleware(answer(422))
    headers = {**BODY, "Expect": "100-continue"}
    exchange = run(app, http_scope("POST", headers=headers), b"somemore")
    assert exchange.headers["connection"] == "close"


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "0"}])
def test_while_the_server_drains_every_response_closes(headers):
    exchange = run(middleware(answer(200), draining=True), http_scope(headers=headers))
    assert exchange.headers["connection"] == "close"
    assert len(exchange.sent) == 2  # there is no body to discard


def test_a_body_that_never_ends_is_read_for_a_limited_time(monkeypatch):
    monkeypatch.setattr(requests, "LINGER_SECONDS", 0.1)

    async def receive():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    began = time.monotonic()
    asyncio.run(discard_body(receive))
    assert 0.1 <= time.monotonic() - began < 5

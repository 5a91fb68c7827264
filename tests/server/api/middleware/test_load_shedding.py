"""What a full server refuses before a route runs."""

from __future__ import annotations

import json

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from server.api.middleware.requests import RequestMiddleware
from server.errors import Overloaded, Refusal
from server.metrics.api import Metrics
from tests.server.api.middleware.asgi import answer, context_of, http_scope, run

router = APIRouter()


@router.post("/classify")
async def classify() -> None:
    pytest.fail("load shedding answers before the route")


@router.post("/v2/models/{name}/infer")
async def infer(name: str) -> None:
    pytest.fail("load shedding answers before the route")


def refuse() -> None:
    raise Overloaded("no slot is free", retry_after=2, reason=Refusal.QUEUE_FULL)


def admit() -> None:
    pass


def send_request(check_room, method="POST", path="/classify"):
    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    app = RequestMiddleware(answer(200), Metrics(), image_routes=routes, check_room=check_room)
    scope = http_scope(method, path)
    exchange = run(app, scope)
    return exchange, context_of(scope)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/classify", "/classify"),
        ("/v2/models/small/infer", "/v2/models/{name}/infer"),
    ],
)
def test_a_full_server_refuses_images(path, route):
    exchange, context = send_request(refuse, path=path)
    assert exchange.status == 503
    assert exchange.headers["retry-after"] == "2"
    # The metrics and the access log name the route, although it has not run.
    assert context.route == route


def test_a_refusal_takes_the_form_of_its_path():
    problem, _ = send_request(refuse, path="/classify")
    assert json.loads(problem.sent[1]["body"])["reason"] == "queue-full"
    oip_error, _ = send_request(refuse, path="/v2/models/small/infer")
    assert json.loads(oip_error.sent[1]["body"]) == {"error": "no slot is free"}


@pytest.mark.parametrize(("method", "path"), [("GET", "/classify"), ("POST", "/elsewhere")])
def test_a_full_server_answers_all_other_requests(method, path):
    exchange, _ = send_request(refuse, method, path)
    assert exchange.status == 200


def test_with_a_free_slot_the_route_answers():
    exchange, _ = send_request(admit)
    assert exchange.status == 200

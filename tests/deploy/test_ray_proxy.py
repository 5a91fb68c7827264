"""What Ray's proxy says when a replica is lost; the middleware needs no Ray."""

from __future__ import annotations

import asyncio

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.ray_proxy import middlewares
from tests.server.wire import assert_problem


def ask(app: ASGIApp, path: str = "/classify") -> httpx.Response:
    (middleware,) = middlewares()
    wrapped = middleware.cls(app, *middleware.args, **middleware.kwargs)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(wrapped), base_url="http://x"
        ) as client:
            return await client.get(path, headers={"X-Request-ID": "id"})

    return asyncio.run(run())


async def lost(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray's proxy: it returns, and that is all."""


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"x-request-id", b"id"), (b"x-request-id", b"id")]
    await send({"type": "http.response.start", "status": 418, "headers": headers})
    await send({"type": "http.response.body", "body": b"as it is"})


def test_a_lost_replica_is_a_reason_to_ask_again():
    response = ask(lost)
    assert "replica" in assert_problem(response, 503, "engine-lost")["detail"]
    assert response.headers["retry-after"] == "1"


def test_clients_of_the_inference_protocol_get_its_form():
    assert list(ask(lost, "/v2/models/x/infer").json()) == ["error"]


def test_an_answer_is_left_as_it_is_with_its_id_once():
    response = ask(answering)
    assert (response.status_code, response.text) == (418, "as it is")
    assert response.headers.get_list("x-request-id") == ["id"]

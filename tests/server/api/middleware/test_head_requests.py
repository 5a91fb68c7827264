from __future__ import annotations

from starlette.types import Receive, Scope, Send

from server.api.middleware.head_requests import HeadRequests
from tests.server.api.middleware.asgi import http_scope, run


async def echo_method(scope: Scope, receive: Receive, send: Send) -> None:
    scope["route"] = "the route"
    content = scope["method"].encode()
    headers = [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def test_head_is_get_without_content():
    scope = http_scope("HEAD")
    exchange = run(HeadRequests(echo_method), scope)
    assert exchange.headers["content-length"] == "3"
    assert exchange.sent[1]["body"] == b""
    assert (scope["method"], scope["route"]) == ("HEAD", "the route")


def test_other_methods_are_not_changed():
    for method in ("GET", "POST"):
        assert run(HeadRequests(echo_method), http_scope(method)).sent[1]["body"] == method.encode()

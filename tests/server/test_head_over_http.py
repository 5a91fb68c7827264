"""HEAD wherever GET is (RFC 9110, section 9.1), on a real server."""

from __future__ import annotations

import httpx

from tests.server.wire import assert_problem

PAGES = {"/", "/docs", "/openapi.json", "/static/page.js", "/nothing", "/v2/models/resnet"}
# What differs between two requests to any path, and to one whose content changes meanwhile.
OTHER = {"date", "x-request-id"}
OTHER_METRICS = OTHER | {"content-length"}


def stable_headers(response: httpx.Response, other: set[str]) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in other}


def test_head_is_answered_as_get_is_without_content(client):
    api = client.get("/openapi.json").json()["paths"]
    described = {path.format(name="fashion-mnist") for path in api if "get" in api[path]}
    assert {"/models", "/readyz", "/v2/models/fashion-mnist/ready"} <= described
    for path in described | PAGES:
        get = client.get(path)
        head = client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert int(head.headers["content-length"]) > 0
        other = OTHER_METRICS if path == "/metrics" else OTHER
        assert stable_headers(head, other) == stable_headers(get, other), path


def test_head_is_refused_where_there_is_no_get(client):
    response = client.head("/classify")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_a_path_with_get_allows_head_too(client):
    response = client.post("/models")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET, HEAD"


def test_head_is_counted_by_its_route(client, server, eventually):
    series = 'tome_requests_total{code="200",model="",route="/models"}'
    before = server.metric(series)
    client.head("/models")
    eventually(lambda: server.metric(series) == before + 1)

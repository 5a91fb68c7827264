"""The rules of /classify hold for /v2 too: slots, bytes, bodies, deadlines, keys, metrics, the end."""

from __future__ import annotations

import base64
import json
import signal

import httpx
import pytest

from tests.server.wire import SNEAKER, read_response

INFER = "/v2/models/fashion-mnist/infer"
ROUTE = "/v2/models/{name}/infer"


def message(count: int = 1, **parameters: object) -> dict:
    data = [base64.b64encode(SNEAKER).decode()] * count
    image = {"name": "image", "datatype": "BYTES", "shape": [count], "data": data}
    return {"inputs": [image], "parameters": {"r": 16, **parameters}}


def assert_error(response: httpx.Response, status: int, text: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert text in response.json()["error"]


def half_sent(server):
    """A connection with a request that was let in, whose body has not arrived in full; and the rest
    of that body.
    """
    body = json.dumps(message()).encode()
    connection = server.connect()
    connection.sendall(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body[:50]
    )
    return connection, body[50:]


@pytest.fixture(scope="module")
def small(start_server):
    """A server with three slots, and a key."""
    with start_server(
        queue_limit=3, max_body_bytes=60_000, max_inflight_bytes=60_000, body_timeout=20
    ) as running:
        yield running


class TestErrors:
    def test_paths_and_methods(self, client):
        assert_error(client.get("/v2/models/fashion-mnist/config"), 404, "no such path")
        assert_error(client.get("/v2/models/resnet"), 404, "no model 'resnet'")
        assert_error(client.post("/v2/models/resnet/infer", content=b"x"), 404, "no model 'resnet'")
        response = client.get(INFER)
        assert_error(response, 405, "not allowed")
        assert response.headers["allow"] == "POST"

    def test_bodies(self, client, server):
        assert_error(client.post(INFER, content=b""), 400, "no JSON")
        assert_error(client.post(INFER, content=b"x" * 300_001), 413, "300001 bytes")
        with server.connect() as connection:
            connection.sendall(
                f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow".encode()
            )
            assert_error(read_response(connection), 408, "did not arrive")

    def test_no_library_is_heard(self, client):
        response = client.post(
            INFER,
            json=message() | {"inputs": [{"name": "image", "datatype": "BYTES", "shape": "x"}]},
        )
        assert_error(response, 400, "shape must be there, as a list")

    def test_a_deadline_ends_the_work(self, client, server, eventually):
        assert_error(client.post(INFER, json=message(3, deadline_ms=0.01)), 504, "deadline")
        eventually(lambda: server.metric("tome_queue_jobs") == 0)


def test_json_without_binary_data(client):
    response = client.post(INFER, json=message(2, top_k=1))
    assert response.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in response.headers
    stages = [stage.partition(";")[0] for stage in response.headers["server-timing"].split(", ")]
    assert stages == ["body", "decode", "queue", "forward"]
    labels, scores = response.json()["outputs"]
    assert labels == {
        "name": "labels",
        "datatype": "BYTES",
        "shape": [2, 1],
        "data": ["Sneaker", "Sneaker"],
    }
    assert scores["data"] == pytest.approx([0.99, 0.99], abs=0.02)


def test_it_is_counted(client, server):
    series = f'tome_requests_total{{code="200",model="fashion-mnist",route="{ROUTE}"}}'
    images = 'tome_images_total{model="fashion-mnist",r="16"}'
    before = server.metric(series), server.metric(images)
    client.post(INFER, json=message(3))
    assert (server.metric(series), server.metric(images)) == (before[0] + 1, before[1] + 3)


def test_openapi(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]) == {
        "application/json", "application/octet-stream",
    }  # fmt: skip
    assert {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}",
        "/v2/models/{name}/ready",
    } <= set(paths)


class TestBounds:
    def test_all_slots_or_none(self, small, eventually):
        images = 'tome_images_total{model="fashion-mnist",r="16"}'
        before = small.metric(images)
        response = httpx.post(f"{small.url}{INFER}", json=message(4), timeout=30)
        assert_error(response, 503, "3 images are waiting already")
        assert int(response.headers["retry-after"]) >= 1
        assert small.metric(images) == before
        assert httpx.post(f"{small.url}{INFER}", json=message(3), timeout=30).status_code == 200

    def test_the_fourth_is_refused_without_its_body_being_read(self, small, eventually):
        held = [half_sent(small) for _ in range(3)]
        eventually(lambda: small.metric("tome_inflight_requests") == 4)
        with small.connect() as connection:
            connection.sendall(
                f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
            )
            assert_error(read_response(connection), 503, "waiting already")
        refused = {
            "code": "503",
            "model": "",
            "route": "/v2/models/{name}/infer",
        }  # before its route was called
        labels = ",".join(f'{name}="{value}"' for name, value in refused.items())
        assert small.metric(f"tome_requests_total{{{labels}}}") >= 1
        for connection, rest in held:
            connection.sendall(rest)
            with connection:
                assert read_response(connection).status_code == 200

    def test_bytes_of_all_bodies_are_bounded_and_given_back(self, small, eventually):
        for _ in range(3):
            held = small.connect()
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
            held.sendall(head.encode() + b"x" * 59_000)
            eventually(lambda: small.metric("tome_inflight_requests") == 2)
            eventually(lambda: refused(small))
            held.close()
            eventually(lambda: small.metric("tome_inflight_requests") == 1)
            assert httpx.post(f"{small.url}{INFER}", json=message(3), timeout=30).status_code == 200

    def test_clients_that_go_away_are_let_go(self, small, eventually):
        for _ in range(20):  # these go away while their body is read, decoded, waits or runs
            connection, rest = half_sent(small)
            connection.sendall(rest)
            connection.close()
        eventually(lambda: small.metric("tome_inflight_requests") == 1)
        eventually(lambda: small.metric("tome_queue_jobs") == 0)
        assert httpx.post(f"{small.url}{INFER}", json=message(3), timeout=30).status_code == 200

    def test_stop_comes_last(self, small, eventually):
        connection, rest = half_sent(small)
        eventually(lambda: small.metric("tome_inflight_requests") == 2)
        small.process.terminate()
        eventually(lambda: httpx.get(f"{small.url}/v2/health/ready").status_code == 503)
        assert_error(httpx.get(f"{small.url}/v2/health/ready"), 503, "stopping")
        assert_error(httpx.get(f"{small.url}/v2/models/fashion-mnist/ready"), 503, "stopping")
        assert_error(httpx.post(f"{small.url}{INFER}", json=message()), 503, "stopping")
        assert httpx.get(f"{small.url}/v2/health/live").json() == {"live": True}
        connection.sendall(rest)
        with connection:
            assert read_response(connection).status_code == 200
        assert small.process.wait(20) == 0


def refused(server) -> bool:
    response = httpx.post(f"{server.url}{INFER}", content=b"x" * 5000)
    return response.status_code == 503 and "bytes of other requests" in response.json()["error"]


def test_before_it_is_ready(start_server, eventually):
    with start_server(wait=False) as server:
        eventually(server.engines)
        server.signal_engine(signal.SIGSTOP)  # so that it does not get ready meanwhile
        eventually(lambda: listens(server))
        for path in (
            "/v2/health/ready",
            "/v2/models/fashion-mnist/ready",
            "/v2/models/fashion-mnist",
        ):
            assert_error(httpx.get(f"{server.url}{path}"), 503, "not loaded")
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        server.signal_engine(signal.SIGCONT)


def listens(server) -> bool:
    try:
        return httpx.get(f"{server.url}/v2").json()["name"] == "tome-serve"
    except httpx.ConnectError:
        return False

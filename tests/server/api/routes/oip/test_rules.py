"""The limits of /classify hold for /v2 too: slots, bytes, deadlines, metrics, graceful shutdown."""

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
    """A connection with an admitted request whose body is incomplete, and the rest of that body."""
    body = json.dumps(message()).encode()
    connection = server.connect()
    connection.sendall(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body[:50]
    )
    return connection, body[50:]


@pytest.fixture(scope="module")
def small(start_server):
    """A server with three slots."""
    with start_server(
        queue_limit=3, max_body_bytes=60_000, max_inflight_bytes=60_000, body_timeout=20
    ) as running:
        yield running


class TestErrors:
    def test_unknown_paths_models_and_methods(self, client):
        assert_error(client.get("/v2/models/fashion-mnist/config"), 404, "no such path")
        assert_error(client.get("/v2/models/resnet"), 404, "no model 'resnet'")
        assert_error(client.post("/v2/models/resnet/infer", content=b"x"), 404, "no model 'resnet'")
        response = client.get(INFER)
        assert_error(response, 405, "not allowed")
        assert response.headers["allow"] == "POST"

    def test_bodies_that_are_empty_too_large_or_slow(self, client, server):
        assert_error(client.post(INFER, content=b""), 400, "not JSON")
        assert_error(client.post(INFER, content=b"x" * 300_001), 413, "300001 bytes")
        with server.connect() as connection:
            connection.sendall(
                f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow".encode()
            )
            assert_error(read_response(connection), 408, "did not arrive")

    def test_malformed_json_gets_an_error_of_the_server_itself(self, client):
        response = client.post(
            INFER,
            json=message() | {"inputs": [{"name": "image", "datatype": "BYTES", "shape": "x"}]},
        )
        assert_error(response, 400, "shape is required, as a list")

    def test_a_deadline_cancels_the_work(self, client, server, eventually):
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


def test_null_is_as_good_as_absent(client):
    absent = dict.fromkeys(["id", "parameters", "outputs"])
    image = message()["inputs"][0] | {"parameters": None}
    response = client.post(INFER, json={**absent, "inputs": [image]})
    assert response.status_code == 200, response.text
    assert "id" not in response.json()
    assert response.json()["outputs"][0]["data"][0] == "Sneaker"


def test_requests_and_images_are_counted(client, server):
    series = f'tome_requests_total{{code="200",model="fashion-mnist",route="{ROUTE}"}}'
    images = 'tome_images_total{model="fashion-mnist",r="16"}'
    before = server.metric(series), server.metric(images)
    client.post(INFER, json=message(3))
    assert (server.metric(series), server.metric(images)) == (before[0] + 1, before[1] + 3)


def test_openapi_has_the_protocols_paths(client):
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


class TestLimits:
    def test_more_images_than_slots_run_in_rounds(self, small):
        images = 'tome_images_total{model="fashion-mnist",r="16"}'
        before = small.metric(images)
        response = httpx.post(f"{small.url}{INFER}", json=message(7), timeout=30)
        assert response.status_code == 200, response.text
        assert response.json()["outputs"][0]["shape"][0] == 7
        assert small.metric(images) == before + 7

    def test_a_request_without_a_free_slot_is_refused_before_its_body_is_read(
        self, small, eventually
    ):
        held = [half_sent(small) for _ in range(3)]
        eventually(lambda: small.metric("tome_inflight_requests") == 4)
        with small.connect() as connection:
            connection.sendall(
                f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
            )
            assert_error(read_response(connection), 503, "waiting already")
        # Without a model: its route was not called.
        labels = f'code="503",model="",route="{ROUTE}"'
        assert small.metric(f"tome_requests_total{{{labels}}}") >= 1
        for connection, rest in held:
            connection.sendall(rest)
            with connection:
                assert read_response(connection).status_code == 200

    def test_bytes_of_all_bodies_are_limited_and_released(self, small, eventually):
        for _ in range(3):
            held = small.connect()
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
            held.sendall(head.encode() + b"x" * 59_000)
            eventually(lambda: small.metric("tome_inflight_requests") == 2)
            eventually(lambda: refused(small))
            held.close()
            eventually(lambda: small.metric("tome_inflight_requests") == 1)
            assert httpx.post(f"{small.url}{INFER}", json=message(3), timeout=30).status_code == 200

    def test_requests_of_clients_that_disconnect_are_cancelled(self, small, eventually):
        for _ in range(20):  # these disconnect while their body is read, decoded, waits or runs
            connection, rest = half_sent(small)
            connection.sendall(rest)
            connection.close()
        eventually(lambda: small.metric("tome_inflight_requests") == 1)
        eventually(lambda: small.metric("tome_queue_jobs") == 0)
        assert httpx.post(f"{small.url}{INFER}", json=message(3), timeout=30).status_code == 200


def refused(server) -> bool:
    response = httpx.post(f"{server.url}{INFER}", content=b"x" * 5000)
    return response.status_code == 503 and "bytes of other requests" in response.json()["error"]


def test_it_is_live_but_not_ready_while_models_load(start_server, eventually):
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

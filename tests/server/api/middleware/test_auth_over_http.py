"""Keys, seen from outside: who gets in, what stays open, and that no log tells a key."""

from __future__ import annotations

import httpx
import pytest

from tests.server.conftest import free_port
from tests.server.wire import SNEAKER, assert_problem

KEYS = ("first-secret", "second-secret")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="module")
def port():
    """Where the metrics are, beside the rest."""
    return free_port()


@pytest.fixture(scope="module")
def guarded(start_server, tmp_path_factory, log, port, eventually):
    """A server with a key in its environment, another in a file, and metrics on a port of their
    own.
    """
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{KEYS[1]}\n")
    settings = {
        "api_keys": KEYS[0],
        "api_keys_file": file,
        "metrics_port": port,
        "log_level": "debug",
    }
    with log.open("w") as stderr, start_server(wait=False, stderr=stderr, **settings) as server:
        eventually(lambda: answers(server), 30)
        yield server


def answers(server):
    try:
        return httpx.get(f"{server.url}/healthz").status_code == 200
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize(
    "path",
    ["/classify", "/models", "/nothing", "/healthz/", "//healthz", "/v3/models", "/metrics/"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_without_a_key_nothing_is_told_of_what_there_is(guarded, method, path):
    response = httpx.request(
        method, f"{guarded.url}{path}", content=b"x" if method == "POST" else None
    )
    assert_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == 'Bearer realm="tome-serve"'


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models", "/v2/models/fashion-mnist/infer", "/v2/health/ready/"]
)
def test_nor_by_the_open_inference_protocol(guarded, path):
    response = httpx.post(f"{guarded.url}{path}", content=b"x")
    assert response.status_code == 401
    assert set(response.json()) == {"error"}
    assert response.headers["www-authenticate"] == 'Bearer realm="tome-serve"'


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong-secret"},
        {"X-API-Key": "first-secre"},
        {"X-API-Key": ""},
        {"Authorization": f"Bearer {KEYS[0]},{KEYS[1]}"},
    ],
)
def test_a_wrong_key(guarded, headers):
    response = httpx.post(f"{guarded.url}/classify", content=SNEAKER, headers=headers)
    assert_problem(response, 401, "unauthorized")
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_right_key(guarded, header, key):
    value = f"Bearer {key}" if header == "Authorization" else key
    response = httpx.post(f"{guarded.url}/classify?r=x", content=SNEAKER, headers={header: value})
    assert response.status_code in (
        422,
        503,
    )  # let in, and told what is wrong with r, or that the models still load
    assert httpx.get(f"{guarded.url}/nothing", headers={header: value}).status_code == 404


def test_probes_and_pages_are_open(guarded):
    pages = ("/", "/static/page.js", "/static/examples/bag.png", "/docs", "/openapi.json")
    for path in (*pages, "/healthz", "/v2/health/live"):
        assert httpx.get(f"{guarded.url}{path}").status_code == 200
    for path in ("/readyz", "/v2/health/ready"):
        assert httpx.get(f"{guarded.url}{path}").status_code in (200, 503)
    for path in ("/static/nothing", "/static/../models", "/static//docs"):
        assert httpx.get(f"{guarded.url}{path}").status_code in (401, 404)


def test_metrics_are_on_their_own_port_alone(guarded, port):
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'tome_rejected_total{reason="unauthorized"}' in text
    assert httpx.get(f"{guarded.url}/metrics").status_code == 404
    assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 404
    assert "/metrics" not in httpx.get(f"{guarded.url}/openapi.json").json()["paths"]


def test_no_log_tells_a_key(guarded, log):
    """Comes last: by now there were right and wrong ones; then the server ends."""
    guarded.process.terminate()
    assert guarded.process.wait(20) == 0
    text = log.read_text()
    assert '"status": 401' in text
    assert "secret" not in text
    assert "secre" not in text

"""A real server behind a proxy: path prefixes, forwarded addresses, pages of other origins."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.server.conftest import eventually
from tests.server.wire import SNEAKER, assert_problem

ORIGIN = "https://app.example"
KEY = {"X-API-Key": "a-key"}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="module")
def proxied(start_server, log):
    settings = {
        "root_path": "/vision/",
        "cors_origins": ORIGIN,
        "api_keys": KEY["X-API-Key"],
        "levels": "0",
        "log_level": "info",
    }
    with log.open("w") as stderr, start_server(stderr=stderr, **settings) as server:
        yield server


class Proxy(BaseHTTPRequestHandler):
    """A reverse proxy that strips the prefix ``/vision``, or keeps it."""

    upstream = ""
    strip = True

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.removeprefix("/vision") if self.strip else self.path
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        headers |= {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
        answer = httpx.request(self.command, self.upstream + path, content=body, headers=headers)
        self.send_response(answer.status_code)
        for name in ("content-type", "x-request-id"):
            self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module", params=[True, False], ids=["stripping", "keeping"])
def proxy(proxied, request) -> Iterator[str]:
    handler = type("Handler", (Proxy,), {"upstream": proxied.url, "strip": request.param})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/vision"
        server.shutdown()
        thread.join()


def test_paths_with_a_prefix_reach_their_routes(proxy):
    assert httpx.get(f"{proxy}/readyz").status_code == 200
    assert httpx.post(f"{proxy}/classify", content=SNEAKER, headers=KEY).json()["r"] == "0"
    assert_problem(httpx.get(f"{proxy}/nothing", headers=KEY), 404, "not-found")
    for key, status in ((KEY, 404), ({}, 401)):
        answer = httpx.get(f"{proxy}/v2/models/nothing", headers=key)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    # The document names the server's address as the client sees it.
    assert httpx.get(f"{proxy}/openapi.json").json()["servers"] == [{"url": "/vision"}]


@pytest.mark.parametrize("path", ["/classify", "/models", "/healthz/", "//healthz"])
def test_a_prefix_does_not_open_a_path_that_needs_a_key(proxy, path):
    assert_problem(httpx.post(proxy + path, content=SNEAKER), 401, "unauthorized")


@pytest.mark.parametrize(
    "path", ["/vision/vision/healthz", "/visionhealthz", "/vision/vision/classify"]
)
def test_the_prefix_is_stripped_once(proxied, path):
    assert_problem(httpx.get(proxied.url + path), 401, "unauthorized")
    assert_problem(httpx.get(proxied.url + path, headers=KEY), 404, "not-found")


def test_health_checks_and_scrapes_may_bypass_the_proxy(proxied):
    for path in ("/healthz", "/readyz", "/metrics"):
        assert httpx.get(proxied.url + path).status_code == 200


def access_line(log, request_id: str) -> dict:
    """The log line of one request; the server writes it after the response."""
    lines: list[dict] = []

    def written() -> bool:
        complete = log.read_text().rpartition("\n")[0].splitlines()
        entries = [json.loads(line) for line in complete]
        lines[:] = [entry for entry in entries if entry.get("request_id") == request_id]
        return bool(lines)

    eventually(written)
    (line,) = lines
    return line


def test_the_access_log_has_the_address_of_the_client_not_of_the_proxy(proxy, log):
    answer = httpx.post(
        f"{proxy}/classify?r=16", content=SNEAKER, headers=KEY | {"X-Request-ID": f"mine-{proxy}"}
    )
    line = access_line(log, answer.headers["x-request-id"])
    assert line["client"] == "203.0.113.7"
    assert line["route"] == "/classify"
    assert line["status"] == 200
    assert line["r"] == "16"
    assert {"body_ms", "decode_ms", "queue_ms", "forward_ms", "duration_ms"} <= set(line)


def test_only_a_trusted_proxy_may_forward_an_address(start_server, tmp_path):
    log = tmp_path / "stderr"
    settings = {"forwarded_allow_ips": "192.0.2.0/24", "log_level": "info"}
    with log.open("w") as stderr, start_server(wait=False, stderr=stderr, **settings) as server:
        transport = httpx.HTTPTransport(retries=10)
        with httpx.Client(base_url=server.url, transport=transport) as client:
            answer = client.get("/nothing", headers={"X-Forwarded-For": "203.0.113.7"})
        line = access_line(log, answer.headers["x-request-id"])
    assert line["client"] == "127.0.0.1"


class TestPagesOfOtherOrigins:
    def send_preflight(self, server, origin, headers="x-api-key"):
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return httpx.options(
            f"{server.url}/classify",
            headers=preflight | {"Access-Control-Request-Headers": headers},
        )

    def test_a_preflight_needs_no_key(self, proxied):
        answer = self.send_preflight(proxied, ORIGIN)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in answer.headers

    @pytest.mark.parametrize(
        ("origin", "headers"), [("https://other.example", "x-api-key"), (ORIGIN, "x-unknown")]
    )
    def test_other_origins_and_headers_are_refused(self, proxied, origin, headers):
        assert self.send_preflight(proxied, origin, headers).status_code == 400

    def test_a_page_may_read_responses_and_errors(self, proxied):
        for key, status in ((KEY, 200), ({}, 401)):
            answer = httpx.post(
                f"{proxied.url}/classify", content=SNEAKER, headers={"Origin": ORIGIN, **key}
            )
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert {"X-Request-ID", "X-Tome-R"} <= set(exposed)
        answer = httpx.post(
            f"{proxied.url}/classify", content=SNEAKER, headers={"Origin": "https://other.example"}
        )
        assert "access-control-allow-origin" not in answer.headers


def test_without_the_setting_no_page_of_another_origin_may_read_a_response(server):
    answer = httpx.get(f"{server.url}/healthz", headers={"Origin": ORIGIN})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]

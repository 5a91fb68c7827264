"""A server on a Unix socket, with its metrics on a port; of both families if there is IPv6."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from server.commands.health import is_healthy
from tests.server.api.transport.nginx import nginx, run_nginx
from tests.server.conftest import ROOT, RunningServer, free_port
from tests.server.system.test_addresses import has_ipv6, needs_ipv6
from tests.server.wire import SNEAKER, assert_problem
from tome_load.run import run_load
from tome_load.spec import LoadSpec
from tome_load.uploads import read_uploads
from tome_top.scrape import NoMetrics, scrape


@dataclass
class UnixServer:
    running: RunningServer
    path: Path
    log: Path
    metrics_port: int

    def client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.path))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=30)


@pytest.fixture(scope="module")
def unix_server(start_server, tmp_path_factory) -> Iterator[UnixServer]:
    folder = tmp_path_factory.mktemp("unix")
    path = folder / "tome.sock"
    port = free_port()
    with (
        (folder / "log").open("w") as stderr,
        start_server(
            stderr=stderr,
            uds=path,
            host="::" if has_ipv6() else "0.0.0.0",
            metrics_port=port,
            levels="0",
            max_batch=1,
            log_level="info",
        ) as running,
    ):
        yield UnixServer(running, path, folder / "log", port)
        running.process.terminate()
        assert running.process.wait(60) == 0
        assert not path.exists()


def clients_by_request(log):
    """The client in the log line of each request; the last line may not be complete yet."""
    whole_lines = log.read_text().split("\n")[:-1]
    lines = [json.loads(line) for line in whole_lines]
    return {line.get("request_id"): line.get("client") for line in lines}


def test_an_image_is_classified_and_the_proxy_names_the_client(unix_server, eventually):
    with unix_server.client() as client:
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Request-ID": "forwarded"}
        assert client.post("/classify", content=SNEAKER, headers=headers).status_code == 200
        assert client.get("/models", headers={"X-Request-ID": "direct"}).status_code == 200
    # A request is logged after its answer.
    eventually(lambda: clients_by_request(unix_server.log).keys() >= {"forwarded", "direct"})
    clients = clients_by_request(unix_server.log)
    assert clients["forwarded"] == "192.0.2.7"
    assert clients["direct"] == "unix"


def test_its_port_is_closed(unix_server):
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{unix_server.running.url}/healthz", timeout=30)


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_metrics_have_their_port_on_both_families(unix_server, host):
    assert scrape(f"http://{host}:{unix_server.metrics_port}").total("tome_engine_ready") == 1


def test_the_commands_reach_it(unix_server):
    url = f"unix:{unix_server.path}"
    spec = LoadSpec(url, read_uploads([]), connections=2, requests=4)
    report = asyncio.run(run_load(spec))
    assert (report.answered, report.requests) == (4, 4)
    with pytest.raises(NoMetrics, match="status 404; metrics may have a port of their own"):
        scrape(f"unix://{unix_server.path}")


def test_the_health_check_of_the_image_reaches_it(unix_server):
    assert is_healthy({"TOME_UDS": str(unix_server.path), "TOME_HOST": "192.0.2.1"})
    assert not is_healthy({"TOME_UDS": f"{unix_server.path}.none"})


@pytest.mark.skipif(nginx() is None, reason="nginx is not installed")
def test_nginx_reaches_it(unix_server, tmp_path):
    with run_nginx(f"http://unix:{unix_server.path}", tmp_path) as url:
        for _ in range(5):
            refused = httpx.post(f"{url}/classify?r=x", content=b"x" * 8_000_000, timeout=30)
            assert_problem(refused, 422, "invalid-parameter")
        assert httpx.post(f"{url}/classify", content=SNEAKER, timeout=30).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "[::1], 127.0.0.1", None])
def test_the_health_check_of_the_image_follows_the_host(server, host):
    environment = {"TOME_PORT": str(server.port)}
    if host is not None:
        environment["TOME_HOST"] = host
    assert is_healthy(environment)
    assert not is_healthy(environment, "/none")
    assert not is_healthy({**environment, "TOME_PORT": str(free_port())})


def test_the_health_check_is_a_command(server):
    command = [sys.executable, "-P", "-m", "server.commands.health", "/readyz"]
    for port, code in (server.port, 0), (free_port(), 1):
        environment = {"PYTHONPATH": str(ROOT), "TOME_PORT": str(port)}
        assert subprocess.run(command, env=environment).returncode == code

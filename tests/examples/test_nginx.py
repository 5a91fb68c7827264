"""The recipe behind nginx, with one of its two servers gone."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.examples.recipes import Recipe
from tests.server.conftest import eventually
from tests.server.wire import SNEAKER, assert_problem

pytestmark = pytest.mark.skipif(
    not Path("/usr/sbin/nginx").exists(), reason="nginx is not installed"
)
CLIENT = "127.0.0.2"  # an address of this machine, and not the one from which nginx connects


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """The recipe, after its README and while its servers run."""
    recipe = Recipe("nginx", tmp_path_factory.mktemp("nginx"), log_level="info")
    with socket.socket() as gone, recipe.run():
        # No other test gets the port, and whoever connects to it is refused.
        gone.bind(("127.0.0.1", int(recipe.ports["8001"])))
        yield recipe


@pytest.fixture(scope="module")
def client(recipe: Recipe) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(local_address=CLIENT)
    with httpx.Client(base_url=recipe.url("8080"), transport=transport, timeout=60) as client:
        yield client


def logged(recipe: Recipe, request_id: str) -> list[dict[str, Any]]:
    """The lines of a request in the server's log that are complete; they come after its answer."""
    return [
        json.loads(line)
        for path in recipe.folder.glob("server-*.log")
        for line in path.read_text().splitlines(keepends=True)
        if request_id in line and '"tome.access"' in line and line.endswith("\n")
    ]


def test_the_server_logs_the_client_that_nginx_saw(recipe: Recipe, client: httpx.Client) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Request-ID": "forged"}
    answer = client.post("/classify", content=SNEAKER, headers=forged)
    assert answer.status_code == 200
    request_id = answer.headers["x-request-id"]
    eventually(lambda: logged(recipe, request_id))
    (line,) = logged(recipe, request_id)
    assert line["client"] == CLIENT
    log = recipe.folder / "nginx-files" / "access.log"
    eventually(lambda: f"200 {request_id}" in log.read_text())


def test_no_request_is_lost_to_the_server_that_is_gone(
    recipe: Recipe, client: httpx.Client
) -> None:
    log = recipe.folder / "nginx-files" / "access.log"
    start = len(log.read_text())
    tried_first = f":{recipe.ports['8001']}, "

    def is_retried() -> bool:
        """Whether a POST has been to the server that is gone, which is left out for seconds."""
        assert client.post("/classify?r=16", content=SNEAKER).status_code == 200
        lines = log.read_text()[start:].splitlines()
        return any("POST" in line and tried_first in line for line in lines)

    eventually(is_retried)


def test_answers_larger_than_its_buffers_pass(client: httpx.Client) -> None:
    files = [("file", ("sneaker.jpg", SNEAKER))] * 64
    answer = client.post("/embed?r=16", files=files)
    assert len(answer.json()["results"]) == 64


def test_early_refusals_pass(client: httpx.Client) -> None:
    for _ in range(5):
        refused = client.post("/classify?r=99", content=bytes(8_000_000))
        assert_problem(refused, 422, "invalid-parameter")


@pytest.mark.parametrize("path", ["/metrics", "/admin/reload"])
def test_paths_for_operators_are_not_public(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "nginx" in answer.text

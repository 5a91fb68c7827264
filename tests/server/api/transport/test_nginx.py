"""Early answers behind nginx, which by default speaks HTTP/1.0 and closes each connection."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.api.transport.nginx import nginx, run_nginx
from tests.server.wire import SNEAKER, assert_problem

pytestmark = pytest.mark.skipif(nginx() is None, reason="nginx is not installed")


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("nginx")
    with run_nginx(server.url, folder) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [("/classify?r=x", 422, "invalid-parameter"), ("/classify", 413, "too-large")],
)
@pytest.mark.parametrize("size", [3_000_000, 8_000_000, 15_000_000])
def test_an_answer_before_the_end_of_the_body_passes(proxy, path, status, slug, size):
    for _ in range(5):
        assert_problem(proxy.post(path, content=b"x" * size), status, slug)


def test_an_image_is_classified(proxy):
    assert proxy.post("/classify?r=16", content=SNEAKER).status_code == 200

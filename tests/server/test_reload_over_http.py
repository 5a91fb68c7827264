"""Reloads of the catalog, of a real server with several API processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import RunningServer, eventually, run_server
from tests.server.engine.tiny import write_tiny
from tests.server.wire import SNEAKER

KEY = {"Authorization": "Bearer of-the-operator"}
WORKERS = 2


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("catalog"))


@pytest.fixture
def config(catalog: Path, reloading: RunningServer) -> Iterator[Path]:
    """The catalog, which is afterwards as it was before, whatever a test does to it."""
    text = catalog.read_text()
    yield catalog
    catalog.write_text(text)
    assert reload(reloading).status_code == 200
    eventually(lambda: len(reloading.engines()) == 1)


@pytest.fixture(scope="module")
def reloading(catalog: Path) -> Iterator[RunningServer]:
    with run_server(
        config=catalog,
        api_workers=WORKERS,
        levels="0",
        dtype="float32",
        api_keys="of-clients",
        admin_key="of-the-operator",
    ) as running:
        yield running


def request(server: RunningServer, method: str, path: str, **arguments: Any) -> httpx.Response:
    headers = arguments.pop("headers", {"X-API-Key": "of-clients"})
    url = f"{server.url}{path}"
    return httpx.request(method, url, timeout=120, headers=headers, **arguments)


def reload(server: RunningServer) -> httpx.Response:
    return request(server, "POST", "/admin/reload", headers=KEY)


def served(server: RunningServer) -> set[tuple[tuple[str, ...], ...]]:
    """The models and aliases that the API processes list, each asked several times."""
    found = set()
    for _ in range(4 * WORKERS):
        models = request(server, "GET", "/models").json()["models"]
        found.add(tuple((model["name"], *model["aliases"]) for model in models))
    return found


def begun_since_failure(server: RunningServer) -> bool:
    """Whether a reload is under way, or has ended, after one that failed."""
    state = request(server, "GET", "/admin/reload", headers=KEY).json()
    return state["running"] or state["last"]["result"] != "failed"


def test_the_routes_need_the_admin_key_alone(reloading: RunningServer) -> None:
    for method in ("GET", "POST"):
        for headers in ({}, {"X-API-Key": "of-clients"}):
            answer = request(reloading, method, "/admin/reload", headers=headers)
            assert (answer.status_code, answer.json()["title"]) == (401, "An API key is needed")
    assert request(reloading, "GET", "/models", headers=KEY).status_code == 401
    state = request(reloading, "GET", "/admin/reload", headers=KEY).json()
    assert not state["running"]


def test_aliases_alone_load_nothing(reloading: RunningServer, config: Path) -> None:
    engines = reloading.engines()
    text = config.read_text()
    config.write_text(f'{text}\n[aliases]\nflowers = "tiny"\n')
    answer = reload(reloading).json()
    assert (answer["result"], answer["aliases"]) == ("aliases", {"flowers": "tiny"})
    assert reload(reloading).json()["result"] == "unchanged"
    assert reloading.engines() == engines
    eventually(lambda: served(reloading) == {(("tiny", "flowers"),)})
    answer = request(reloading, "POST", "/classify?model=flowers", content=SNEAKER).json()
    assert answer["model"] == "tiny"
    assert request(reloading, "GET", "/v2/models/flowers").json()["name"] == "tiny"
    listed = request(reloading, "GET", "/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "flowers"]
    assert request(reloading, "GET", "/v1/models/flowers").json()["id"] == "flowers"
    config.write_text(text)
    assert reload(reloading).json()["aliases"] == {}


@pytest.mark.slow
def test_models_come_and_go_and_slots_grow(reloading: RunningServer, config: Path) -> None:
    text = config.read_text()
    before = reloading.engines()
    larger = text.replace('"tiny"', '"large"', 1).replace("img_size = 32", "img_size = 64")
    config.write_text(text + larger + '\n[aliases]\nflowers = "large"\n')
    assert reload(reloading).json()["models"] == ["tiny", "large"]
    eventually(lambda: len(reloading.engines()) == 1)
    assert reloading.engines() != before
    eventually(lambda: served(reloading) == {(("tiny",), ("large", "flowers"))})
    for _ in range(2 * WORKERS):
        answer = request(reloading, "POST", "/classify?model=flowers", content=SNEAKER).json()
        assert (answer["model"], answer["tokens"]["input"]) == ("large", 65)

    # A lost engine comes back with what it served, whatever the catalog says by now.
    config.write_text("broken")
    reloading.signal_engine(signal.SIGKILL)
    eventually(lambda: not reloading.ready())
    eventually(reloading.ready)
    assert request(reloading, "POST", "/classify?model=large", content=SNEAKER).status_code == 200

    failed = reload(reloading)
    assert_refused(failed)
    assert "models.toml is not valid TOML" in failed.json()["detail"]
    last = request(reloading, "GET", "/admin/reload", headers=KEY).json()["last"]
    assert (last["result"], last["models"]) == ("failed", ["tiny", "large"])

    config.write_text(text)
    reloading.process.send_signal(signal.SIGHUP)
    eventually(lambda: begun_since_failure(reloading))
    assert reload(reloading).json()["result"] == "unchanged"  # after the one of the signal
    eventually(lambda: len(reloading.engines()) == 1)
    eventually(lambda: served(reloading) == {(("tiny",),)})
    assert request(reloading, "POST", "/classify?model=large", content=SNEAKER).status_code == 404


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:tome:problem:reload-failed"


@pytest.mark.slow
def test_a_stop_ends_a_reload_and_answers_who_waits(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    with (
        run_server(config=config, levels="0", dtype="float32", admin_key="of-the-operator") as one,
        ThreadPoolExecutor() as threads,
    ):
        config.write_text(config.read_text().replace("crop_pct = 1.0", "crop_pct = 0.9"))
        before = one.engines()
        waiting = threads.submit(reload, one)
        eventually(lambda: len(one.engines()) == 2)
        # It cannot become ready before the stop.
        (successor,) = set(one.engines()) - set(before)
        os.kill(successor, signal.SIGSTOP)
        one.process.send_signal(signal.SIGHUP)
        one.process.send_signal(signal.SIGTERM)
        answer = waiting.result(60)
        assert_refused(answer)
        assert "the server stops" in answer.json()["detail"]
        assert one.process.wait(60) == 0


def test_without_an_admin_key_there_is_no_such_path(server: RunningServer) -> None:
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{server.url}/admin/reload", timeout=30)
        assert answer.status_code == 404

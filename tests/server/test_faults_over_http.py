"""What clients see when an engine fails: real servers, real signals, and a model that fails where
an image says so.
"""

from __future__ import annotations

import io
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.server.engine import faulty
from tests.server.engine.faulty_server import HUNG_SECONDS
from tests.server.wire import SNEAKER, assert_problem, finish, half_sent


@pytest.fixture
def broken(monkeypatch):
    """Which module the engines of ``python -m tests.server.engine.faulty_server`` run."""
    return lambda name: monkeypatch.setenv("FAULTY", name)


def picture(fault=0):
    """A picture that the tiny model takes as it is."""
    pixels = np.random.default_rng(0).integers(0, 200, (32, 32, 3), np.uint8)
    pixels[0, 0, 0] = fault
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def ask_all(server, bodies, query=""):
    """All at once; the answers in order."""
    with (
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(len(bodies)) as pool,
    ):
        return list(pool.map(lambda body: client.post(f"/classify{query}", content=body), bodies))


def best_score(answer):
    return answer.json()["predictions"][0]["score"]


def test_a_model_that_fails(start_server, broken, eventually, tiny_folder):
    broken("faulty")
    settings = {
        "config": tiny_folder / "models.toml",
        "levels": "0",
        "max_batch": 4,
        "target_ms": 1,
        "dtype": "float32",
    }
    with start_server(module="tests.server.engine.faulty_server", **settings) as server:
        faults = [faulty.SLOW, 0, faulty.ERROR, 0, faulty.NAN, 0, faulty.ALONE_TOO_LARGE, 0]
        answers = ask_all(server, [picture(fault) for fault in faults])
        assert [answer.status_code for answer in answers] == [
            200,
            200,
            500,
            200,
            500,
            200,
            503,
            200,
        ]
        for place in (2, 4):
            assert_problem(answers[place], 500, "inference-failed")
        assert assert_problem(answers[6], 503, "overloaded")["reason"] == "out-of-memory"
        assert int(answers[6].headers["retry-after"]) >= 1
        for place in (3, 5, 7):
            assert best_score(answers[place]) == pytest.approx(best_score(answers[1]), abs=2e-2)

        # Batches that do not fit are run in parts, and those that follow are smaller from the
        # start.
        def limit():
            return server.metric('tome_engine_batch_limit{engine="0"}')

        assert limit() == 4  # the image that did not fit alone changed nothing
        bodies = [picture(faulty.SLOW), *[picture(faulty.MEMORY)] * 4]
        for _ in range(5):
            assert {answer.status_code for answer in ask_all(server, bodies)} == {200}
        assert limit() == faulty.FITS

        # A deadline that the queue will not meet is refused at once.
        assert {answer.status_code for answer in ask_all(server, [picture(faulty.SLOW)] * 16)} == {
            200
        }
        with (
            httpx.Client(base_url=server.url, timeout=60) as client,
            ThreadPoolExecutor(30) as pool,
        ):
            queue = [
                pool.submit(client.post, "/classify", content=picture(faulty.SLOW))
                for _ in range(30)
            ]
            eventually(lambda: server.metric("tome_queue_jobs") > 12)
            refused = httpx.post(f"{server.url}/classify?deadline_ms=300", content=picture())
            assert assert_problem(refused, 503, "overloaded")["reason"] == "deadline"
            assert int(refused.headers["retry-after"]) >= 1
            assert {answer.result().status_code for answer in queue} == {200}

        # One that passes meanwhile is answered by its own timer, though the engine answers nothing
        # any more.
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            hung = pool.submit(
                httpx.post, f"{server.url}/classify", content=picture(faulty.HANG), timeout=60
            )
            eventually(lambda: server.metric("tome_queue_jobs") == 1)
            late = httpx.post(f"{server.url}/classify?deadline_ms=1500", content=picture())
            assert_problem(late, 504, "deadline-exceeded")
            lost = assert_problem(hung.result(), 503, "engine-lost")
        assert time.monotonic() - began < 5 * HUNG_SECONDS
        assert "retry" in lost["detail"]
        assert int(hung.result().headers["retry-after"]) >= 1
        eventually(server.ready, 60)
        assert ask_all(server, [picture()])[0].status_code == 200
        assert server.metric('tome_engine_restarts_total{engine="0"}') == 1
        for kind in ("error", "nan", "out-of-memory"):
            assert server.metric(f'tome_batch_failures_total{{kind="{kind}"}}') >= 1


def test_one_of_two_engines(start_server, eventually):
    """One dies, the other goes on; then both are gone, and it is told to stop while they are
    started again.
    """
    with start_server(levels="0", max_batch=4, device="cpu,cpu", threads=1) as server:
        ready = [f'tome_engine_ready{{engine="{engine}"}}' for engine in "01"]
        eventually(lambda: all(server.metric(name) == 1 for name in ready), 60)
        assert httpx.get(f"{server.url}/models").json()["models"][0]["device"] == "cpu,cpu"
        server.signal_engine(signal.SIGSTOP)
        answers = ask_all(server, [SNEAKER] * 8, "?r=16")
        assert {answer.status_code for answer in answers} == {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                assert_problem(answer, 503, "engine-lost")
        assert server.ready()
        assert server.metric('tome_engine_ready{engine="0"}') == 0
        assert {answer.status_code for answer in ask_all(server, [SNEAKER] * 8)} == {200}
        assert server.metric("tome_queue_jobs") == 0
        held = half_sent(server)
        eventually(lambda: server.metric("tome_inflight_requests") == 2)
        for engine in server.engines():
            os.kill(engine, signal.SIGKILL)
        eventually(lambda: not server.ready())
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        refused = httpx.post(f"{server.url}/classify", content=SNEAKER)
        assert assert_problem(refused, 503, "overloaded")["reason"] == "not-ready"
        server.process.terminate()
        assert_problem(finish(held), 503, "engine-lost")
        assert server.process.wait(20) == 0


def test_an_engine_that_cannot_be_kept_ends_the_server(start_server, broken):
    broken("dying")
    with start_server(module="tests.server.engine.faulty_server", wait=False) as server:
        assert server.process.wait(60) == 1

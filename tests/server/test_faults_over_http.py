"""What clients see when an engine fails: real servers, real signals, images that fail the model."""

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

FAULTY_SERVER = "tests.server.engine.faulty_server"
NO_FAULT = 0
MAX_BATCH = 4


@pytest.fixture(scope="module")
def faulty_server(start_server, tiny_folder):
    """A server whose model fails when an image says so."""
    settings = {
        "config": tiny_folder / "models.toml",
        "levels": "0",
        "max_batch": MAX_BATCH,
        "target_ms": 1,
        "dtype": "float32",
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FAULTY", "faulty")
        with start_server(module=FAULTY_SERVER, **settings) as server:
            yield server


def image(fault=NO_FAULT):
    """An image in the input size of the tiny model; its first pixel names the fault."""
    pixels = np.random.default_rng(0).integers(0, 200, (32, 32, 3), np.uint8)
    pixels[0, 0, 0] = fault
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def classify_all(server, bodies, query=""):
    """Send all ``bodies`` at once. Return the responses in order."""
    with (
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(len(bodies)) as pool,
    ):

        def classify(body):
            return client.post(f"/classify{query}", content=body)

        return list(pool.map(classify, bodies))


def status_codes(responses):
    return [response.status_code for response in responses]


def best_score(response):
    return response.json()["predictions"][0]["score"]


def batch_limit(server):
    return server.metric('tome_engine_batch_limit{engine="0"}')


def test_only_the_images_at_fault_fail(faulty_server):
    # The slow image keeps the engine busy, so that the others share a batch.
    limit_before = batch_limit(faulty_server)
    faults = [
        faulty.SLOW,
        NO_FAULT,
        faulty.ERROR,
        NO_FAULT,
        faulty.NAN,
        NO_FAULT,
        faulty.ALONE_TOO_LARGE,
        NO_FAULT,
    ]
    responses = classify_all(faulty_server, [image(fault) for fault in faults])
    assert status_codes(responses) == [200, 200, 500, 200, 500, 200, 503, 200]
    for failed in (responses[2], responses[4]):
        assert_problem(failed, 500, "inference-failed")
    too_large = responses[6]
    assert assert_problem(too_large, 503, "overloaded")["reason"] == "out-of-memory"
    assert int(too_large.headers["retry-after"]) >= 1
    expected_score = pytest.approx(best_score(responses[1]), abs=2e-2)
    assert [best_score(responses[index]) for index in (3, 5, 7)] == [expected_score] * 3
    for failure in ("error", "nan", "out-of-memory"):
        assert faulty_server.metric(f'tome_batch_failures_total{{kind="{failure}"}}') >= 1
    # An image that does not fit alone says nothing about the size of batches.
    assert batch_limit(faulty_server) >= limit_before


def test_batches_that_do_not_fit_are_split_and_later_ones_are_smaller(faulty_server):
    bodies = [image(faulty.SLOW), *[image(faulty.MEMORY)] * 4]
    for _ in range(5):
        assert status_codes(classify_all(faulty_server, bodies)) == [200] * 5
    assert batch_limit(faulty_server) == faulty.FITS


def test_a_deadline_that_the_queue_will_miss_is_refused_at_once(faulty_server, eventually):
    slow_images = [image(faulty.SLOW)] * 16  # from their times the server learns to predict
    assert status_codes(classify_all(faulty_server, slow_images)) == [200] * 16
    url = f"{faulty_server.url}/classify"
    with (
        httpx.Client(timeout=60) as client,
        ThreadPoolExecutor(30) as pool,
    ):
        queued = [pool.submit(client.post, url, content=image(faulty.SLOW)) for _ in range(30)]
        eventually(lambda: faulty_server.metric("tome_queue_jobs") > 20)
        # The work ahead takes four seconds. A busy machine may delay a request by the second that
        # it has.
        answers = (
            httpx.post(f"{url}?deadline_ms=1000", content=image(), timeout=30) for _ in range(3)
        )
        refused = next(answer for answer in answers if answer.status_code != 504)
        assert assert_problem(refused, 503, "overloaded")["reason"] == "deadline"
        assert int(refused.headers["retry-after"]) >= 1
        assert status_codes(future.result() for future in queued) == [200] * 30


def test_a_hung_engine_is_restarted(faulty_server, eventually):
    restarts = 'tome_engine_restarts_total{engine="0"}'
    before = faulty_server.metric(restarts)
    began = time.monotonic()
    url = f"{faulty_server.url}/classify"
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(httpx.post, url, content=image(faulty.HANG), timeout=60)
        eventually(lambda: faulty_server.metric("tome_queue_jobs") == 1)
        # The API process answers an expired request, although the engine does not respond.
        late = httpx.post(f"{url}?deadline_ms=1500", content=image(), timeout=30)
        assert_problem(late, 504, "deadline-exceeded")
        lost = hung.result()
    assert "retry" in assert_problem(lost, 503, "engine-lost")["detail"]
    assert int(lost.headers["retry-after"]) >= 1
    assert time.monotonic() - began < 5 * HUNG_SECONDS
    eventually(faulty_server.ready)
    assert status_codes(classify_all(faulty_server, [image()])) == [200]
    assert faulty_server.metric(restarts) == before + 1


def test_while_one_of_two_engines_is_lost_the_other_serves(start_server, eventually):
    """One engine dies. Then both do, and the server is stopped while they restart."""
    with start_server(levels="0", max_batch=4, device="cpu,cpu", threads=1) as server:
        ready = [f'tome_engine_ready{{engine="{engine}"}}' for engine in "01"]
        eventually(lambda: all(server.metric(name) == 1 for name in ready))
        models = httpx.get(f"{server.url}/models", timeout=30).json()["models"]
        assert models[0]["device"] == "cpu,cpu"
        server.signal_engine(signal.SIGSTOP)
        responses = classify_all(server, [SNEAKER] * 8, "?r=16")
        assert set(status_codes(responses)) == {200, 503}
        for response in responses:
            if response.status_code == 503:
                assert_problem(response, 503, "engine-lost")
        assert server.ready()
        assert server.metric('tome_engine_ready{engine="0"}') == 0
        assert status_codes(classify_all(server, [SNEAKER] * 8)) == [200] * 8
        assert server.metric("tome_queue_jobs") == 0
        in_flight = half_sent(server)
        eventually(lambda: server.metric("tome_inflight_requests") == 2)
        for engine in server.engines():
            os.kill(engine, signal.SIGKILL)
        eventually(lambda: not server.ready())
        assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
        refused = httpx.post(f"{server.url}/classify", content=SNEAKER, timeout=30)
        assert assert_problem(refused, 503, "overloaded")["reason"] == "not-ready"
        server.process.terminate()
        assert_problem(finish(in_flight), 503, "engine-lost")
        assert server.process.wait(60) == 0


def test_a_server_whose_engine_keeps_dying_ends(start_server, monkeypatch):
    monkeypatch.setenv("FAULTY", "dying")
    with start_server(module=FAULTY_SERVER, wait=False) as server:
        assert server.process.wait(120) == 1

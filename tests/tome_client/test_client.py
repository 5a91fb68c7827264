"""Both clients against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import tome_client
from tests.server.conftest import ROOT, eventually, free_port, run_server
from tests.server.wire import EXAMPLES, SNEAKER
from tome_client import AsyncClient, Client, Retry

KEY = "a-key"
ONCE = Retry(attempts=1)
QUICK = Retry(attempts=3, total=5, first=0.01)


class Blocking:
    """An `AsyncClient` whose coroutines run at once, so that both clients take the same tests."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.Runner()
        self._client = AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **options: self._loop.run(method(*args, **options))

    def __enter__(self) -> Blocking:
        self._loop.run(self._client.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        with self._loop:
            self._loop.run(self._client.__aexit__(None, None, None))


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def make(request) -> Any:
    return request.param


@pytest.fixture
def client(make, default_server) -> Iterator[Any]:
    with make(default_server.url) as client:
        yield client


@pytest.fixture(scope="module")
def small():
    """A server with three slots that asks for a key."""
    with run_server(queue_limit=3, max_body_bytes=300_000, api_keys=KEY) as running:
        yield running


class TestImages:
    def test_every_form(self, client, tmp_path):
        path = tmp_path / "sneaker.jpg"
        path.write_bytes(SNEAKER)
        picture = Image.open(io.BytesIO(SNEAKER))
        for image in (
            SNEAKER,
            bytearray(SNEAKER),
            path,
            str(path),
            io.BytesIO(SNEAKER),
            picture,
            picture.convert("CMYK"),
        ):
            found = client.classify(image, r=16)
            assert found.label == "Sneaker", image
            assert found.predictions[0].score == pytest.approx(0.995, abs=0.01)

    def test_what_is_no_image(self, client, tmp_path):
        with pytest.raises(TypeError, match="not int"):
            client.classify(3)
        with pytest.raises(TypeError, match="is open as text"):
            client.classify(io.StringIO("x"))
        with pytest.raises(FileNotFoundError):
            client.classify(tmp_path / "nothing.jpg")


class TestAnswers:
    def test_classify(self, client, default_server):
        found = client.classify(SNEAKER, r=16, top_k=2, deadline_ms=30_000, model="fashion-mnist")
        answer = httpx.post(
            f"{default_server.url}/classify?r=16&top_k=2", content=SNEAKER, timeout=30
        ).json()
        assert (found.model, found.r, found.r_requested) == ("fashion-mnist", "16", "16")
        assert found.merging == answer["merging"] == "paper"
        assert [one.label for one in found.predictions] == [
            one["label"] for one in answer["predictions"]
        ]
        assert [one.index for one in found.predictions] == [
            one["index"] for one in answer["predictions"]
        ]
        assert (found.tokens.input, found.tokens.output, found.batch_size) == (197, 11, 1)
        assert min(found.timing_ms.decode, found.timing_ms.forward) > 0

    @pytest.mark.parametrize(
        ("r", "used"), [(None, "0"), (8, "8"), ("16:-1", "16:-1"), ([30, 0, 5], "30,0,5")]
    )
    def test_r(self, client, r, used):
        assert client.classify(SNEAKER, r=r).r == used

    def test_auto_on_an_idle_server_is_the_exact_model(self, client):
        found = client.classify(SNEAKER, r="auto", r_max=16, min_accuracy=90.5, deadline_ms=10_000)
        assert (found.label, found.r, found.r_requested) == ("Sneaker", "0", "auto")
        results = client.classify_many([SNEAKER] * 2, r="auto", r_max=0)
        assert [(one.r, one.r_requested) for one in results] == [("0", "auto")] * 2
        exact = client.embed(SNEAKER, r=0)
        np.testing.assert_allclose(
            client.embed(SNEAKER, r="auto", r_max=0), exact, atol=0.02 * np.abs(exact).max()
        )

    def test_an_uncertain_image_runs_again(self, client):
        found = client.classify(SNEAKER, r=20, confidence=1, confidence_r=4)
        assert [one.r for one in found.passes] == ["20", "4"]
        assert (found.r, found.r_requested, found.confident) == ("4", "20", True)
        assert found.timing_ms.forward == pytest.approx(
            sum(one.forward_ms for one in found.passes), abs=0.01
        )
        (certain,) = client.classify_many([SNEAKER], r=20, confidence=0)
        assert ([one.r for one in certain.passes], certain.confident) == (["20"], True)
        plain = client.classify(SNEAKER, r=20)
        assert (plain.passes, plain.confident) == ((), None)
        with pytest.raises(tome_client.InvalidParameter, match="evaluate --profile"):
            client.classify(SNEAKER, r=19, confidence="auto")  # no level

    def test_many(self, client):
        images = [EXAMPLES["bag"], b"hello", *[SNEAKER] * 20]
        first, second, *others = client.classify_many(iter(images), r=16)
        assert first.label == "Bag"
        assert isinstance(second, tome_client.UnsupportedFormat)
        assert (second.status, second.title) == (415, "Not a supported format")
        assert [found.label for found in others] == ["Sneaker"] * 20
        assert client.classify_many([]) == []

    def test_embed(self, client, default_server):
        expected = httpx.post(
            f"{default_server.url}/embed?r=16", content=SNEAKER, timeout=30
        ).json()["embedding"]
        found = client.embed(SNEAKER, r=16)
        unit = client.embed(SNEAKER, r=16, normalize=True)
        assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(unit, found / np.linalg.norm(found), atol=0.01)
        assert (found.shape, found.dtype) == ((128,), np.float32)
        assert found.flags.writeable
        np.testing.assert_allclose(found, expected, atol=1e-3)
        many = client.embed_many([EXAMPLES["bag"], *[SNEAKER] * 17], r=16)
        assert np.stack(many).shape == (18, 128)
        np.testing.assert_allclose(many[17], expected, atol=0.02 * np.abs(expected).max())
        with pytest.raises(tome_client.UnsupportedFormat) as caught:
            client.embed_many([SNEAKER, b"hello"])
        assert caught.value.members["index"] == 1

    def test_visualize(self, client):
        picture = Image.open(io.BytesIO(client.visualize(SNEAKER, r=16)))
        assert (picture.format, picture.size) == ("PNG", (224, 224))

    def test_models_and_ready(self, client):
        (model,) = client.models()
        assert (model.name, model.input_size, model.r_max) == ("fashion-mnist", (1, 28, 28), 98)
        assert model.merging == "paper"
        assert [level.r for level in model.levels] == ["0", "16"]
        assert client.ready()


class TestErrors:
    @pytest.mark.parametrize(
        ("image", "options", "kind"),
        [
            (b"", {}, "BadImage"),
            (SNEAKER[:300], {}, "BadImage"),
            (b"hello", {}, "UnsupportedFormat"),
            (b"x" * 20_000_001, {}, "TooLarge"),
            (SNEAKER, {"model": "resnet"}, "NotFound"),
            (SNEAKER, {"r": 99}, "InvalidParameter"),
            (SNEAKER, {"deadline_ms": 0.01}, "DeadlineExceeded"),
        ],
    )
    def test_problems(self, client, image, options, kind):
        with pytest.raises(getattr(tome_client, kind)) as caught:
            client.classify(image, **options)
        error = caught.value
        assert isinstance(error, tome_client.ProblemError)
        assert error.type == f"urn:tome:problem:{error.slug}"
        assert error.detail
        assert error.detail in str(error)
        assert error.request_id
        assert error.members["instance"].endswith(error.request_id)
        if kind == "InvalidParameter":
            assert error.members["parameter"] == "r"

    @pytest.mark.parametrize(
        "method", ["classify", "classify_many", "embed", "embed_many", "visualize"]
    )
    def test_every_method_hands_on_the_bounds_of_auto(self, client, method):
        image = [SNEAKER] if method.endswith("many") else SNEAKER
        for bounds, parameter in (
            ({"r_max": 99}, "r_max"),
            ({"min_accuracy": 99.5}, "min_accuracy"),
            ({"min_agreement": 101}, "min_agreement"),
            ({"min_fidelity": 1.1}, "min_fidelity"),
        ):
            with pytest.raises(tome_client.InvalidParameter) as caught:
                getattr(client, method)(image, r="auto", **bounds)
            assert caught.value.members["parameter"] == parameter

    def test_no_r_is_fast_enough(self, make, default_server):
        with (
            make(default_server.url, retry=ONCE) as client,
            pytest.raises(tome_client.Overloaded) as caught,
        ):
            for _ in range(100):
                # On a busy machine so close a deadline may pass before the server looks at the
                # clock.
                with contextlib.suppress(tome_client.DeadlineExceeded):
                    client.classify(SNEAKER, r="auto", deadline_ms=1)
        assert caught.value.members["reason"] == "deadline"

    def test_nobody_there(self, make):
        with make(f"http://127.0.0.1:{free_port()}", retry=QUICK) as client:
            with pytest.raises(tome_client.Unreachable) as caught:
                client.classify(SNEAKER)
            assert isinstance(caught.value.__cause__, httpx.ConnectError)
            assert not client.ready()

    def test_keys(self, make, small):
        for key in (None, "another"):
            with make(small.url, api_key=key) as client, pytest.raises(tome_client.Unauthorized):
                client.models()
        with make(small.url, api_key=KEY) as client:
            assert len(client.models()) == 1


@contextlib.contextmanager
def stranger(status: int, body: bytes) -> Iterator[str]:
    """Something else that speaks HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


class TestStrangers:
    @pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"model": 3}', b"null"])
    def test_another_answer(self, make, body):
        with stranger(200, body) as url, make(url, retry=ONCE) as client:
            with pytest.raises(tome_client.BadAnswer):
                client.classify(SNEAKER)
            with pytest.raises(tome_client.BadAnswer):
                client.classify_many([SNEAKER])

    def test_another_error(self, make):
        with stranger(502, b"<html>bad gateway") as url, make(url, retry=ONCE) as client:
            with pytest.raises(tome_client.ProblemError, match="502 Bad Gateway") as caught:
                client.classify(SNEAKER)
            assert (caught.value.status, caught.value.type, caught.value.members) == (
                502, "about:blank", {"title": "Bad Gateway"},
            )  # fmt: skip


class TestOverload:
    def test_files_without_room_are_sent_again(self, make, small):
        with make(small.url, api_key=KEY, retry=Retry(first=0.01)) as client:
            found = client.classify_many([SNEAKER] * 10, r=16)
            assert [one.label for one in found] == ["Sneaker"] * 10
        with make(small.url, api_key=KEY, retry=ONCE) as client:
            found = client.classify_many([SNEAKER] * 5)
            assert [isinstance(one, tome_client.Overloaded) for one in found] == [False] * 3 + [
                True
            ] * 2
            # Features of several files are one answer, so they take turns where slots are few.
            assert len(client.embed_many([SNEAKER] * 4)) == 4


def test_clients_outlast_the_replacement_of_a_server():
    """The server drains, sends `Retry-After`, ends, and another one starts on its port."""
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(run_server(levels="0", max_batch=1, body_timeout=60))
        held = old.connect()
        held.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SNEAKER)
        )
        eventually(lambda: old.metric("tome_inflight_requests") == 2)
        old.process.terminate()
        eventually(lambda: not old.ready())
        for make in (Client, Blocking):
            with make(old.url, retry=ONCE) as client:
                assert not client.ready()
                with pytest.raises(tome_client.Overloaded) as caught:
                    client.classify(SNEAKER)
                assert caught.value.retry_after == 5
                assert caught.value.members["reason"] == "draining"

        def refused() -> float:
            return old.metric('tome_rejected_total{reason="draining"}')

        def classify(make: Any) -> str:
            with make(old.url, retry=Retry(attempts=50, total=180)) as client:
                return client.classify(SNEAKER, r=16).label

        before = refused()
        with ThreadPoolExecutor(2) as pool:
            began = time.monotonic()
            answers = [pool.submit(classify, make) for make in (Client, Blocking)]
            eventually(lambda: refused() >= before + 2)
            # Without Retry-After they would have retried by now, and been refused.
            time.sleep(1.5)
            seen = refused()
            assert seen == before + 2 or time.monotonic() > began + 5  # so late they may have
            held.sendall(SNEAKER)
            assert held.recv(12) == b"HTTP/1.1 200"
            held.close()
            assert old.process.wait(60) == 0
            stack.enter_context(run_server(levels="0", max_batch=1, port=old.port))
            assert [answer.result(180) for answer in answers] == ["Sneaker", "Sneaker"]


def test_both_have_the_same_methods():
    names = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
    for name, method in vars(Client).items():
        if inspect.isfunction(method):
            other = vars(AsyncClient)[names.get(name, name)]
            assert inspect.signature(method) == inspect.signature(other), name
            assert inspect.iscoroutinefunction(other) == (name != "__init__"), name
            assert name.startswith("_") or name == "close" or method.__doc__ == other.__doc__, name
    assert (ROOT / "tome_client/py.typed").exists()

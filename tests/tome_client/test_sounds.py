"""Sounds: what both clients send for one, and what they make of the answers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

import tome_client
from tests.server.tiny_ear import sound
from tests.server.wire import SNEAKER
from tests.tome_client.test_client import ONCE, QUICK, Blocking
from tome_client import Client, Media, Prediction, Tokens, Window

SOUND = b"RIFF and so on"
PREDICTION = {"label": "en", "index": 2, "score": 0.75}
TOKENS = {"input": 129, "output": 40}
COMMON = {
    "model": "language",
    "r": "8",
    "r_requested": "8",
    "merging": "pairs",
    "tokens": TOKENS,
    "timing_ms": {"decode": 1.5, "queue": 0.5, "forward": 20.0},
    "batch_size": 2,
    "modality": "audio",
    "media": {"seconds": 5.25, "sample_rate": 44_100, "channels": 2},
}
SPANS = ({"start": 0.0, "end": 4.0}, {"start": 1.25, "end": 5.25})
ANSWER = {
    **COMMON,
    "predictions": [PREDICTION],
    "windows": [
        {**span, "r": "8", "tokens": TOKENS, "predictions": [PREDICTION]} for span in SPANS
    ],
}
EMBEDDING = {
    **COMMON,
    "embedding": [0.5, 1.5],
    "windows": [
        {**span, "r": "8", "tokens": TOKENS, "embedding": [float(index), 0.5]}
        for index, span in enumerate(SPANS)
    ],
}
PROBLEM = {"type": "urn:tome:problem:bad-media", "title": "x", "detail": "y"}


@contextlib.contextmanager
def answering(status: int, answer: object) -> Iterator[tuple[str, list[Any]]]:
    """A server with one answer; yield its URL, and the query, type and body of each request."""
    received: list[Any] = []
    body = json.dumps(answer).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            query = parse_qs(urlsplit(self.path).query)
            received.append((query, self.headers["Accept"], content))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", received
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def make(request) -> Any:
    return request.param


def test_a_sound_is_a_path_a_file_or_bytes(make, tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(SOUND)
    with (
        answering(200, ANSWER) as (url, received),
        make(url, retry=ONCE) as client,
        path.open("rb") as file,
    ):
        for sound in (SOUND, path, str(path), file):
            client.classify(sound, r=8)
    assert [body for _, _, body in received] == [SOUND] * 4


def test_the_answer_has_the_sound_and_its_windows(make):
    with answering(200, ANSWER) as (url, received), make(url, retry=ONCE) as client:
        found = client.classify(SOUND, windows="each")
    assert received[0][0] == {"windows": ["each"]}
    assert (found.label, found.modality, found.merging) == ("en", "audio", "pairs")
    assert found.media == Media(seconds=5.25, sample_rate=44_100, channels=2)
    prediction = Prediction("en", 2, 0.75)
    tokens = Tokens(129, 40)
    assert found.windows == (
        Window(0.0, 4.0, "8", (prediction,), tokens),
        Window(1.25, 5.25, "8", (prediction,), tokens),
    )
    assert found.windows[1].label == "en"


def test_without_windows_there_are_none(make):
    mean = {name: value for name, value in ANSWER.items() if name != "windows"}
    with answering(200, mean) as (url, received), make(url, retry=ONCE) as client:
        assert client.classify(SOUND).windows == ()
    assert received[0][0] == {}


def test_features_of_each_window(make):
    with answering(200, EMBEDDING) as (url, received), make(url, retry=ONCE) as client:
        rows = client.embed(SOUND, windows="each")
    np.testing.assert_array_equal(rows, np.array([[0, 0.5], [1, 0.5]], np.float32))
    assert rows.dtype == np.float32
    assert received[0][1] != "application/octet-stream"
    with answering(200, EMBEDDING) as (url, _), make(url, retry=ONCE) as client:
        first, second = client.embed_many([SOUND] * 2, windows="each")
    np.testing.assert_array_equal(first, rows)
    np.testing.assert_array_equal(second, rows)


@pytest.mark.parametrize("method", ["classify", "classify_many", "embed", "embed_many"])
def test_another_answer(make, method):
    wrong = {**ANSWER, "windows": [{"start": 0}], "results": [{**ANSWER, "windows": 3}]}
    sound = [SOUND] if method.endswith("many") else SOUND
    with (
        answering(200, wrong) as (url, _),
        make(url, retry=ONCE) as client,
        pytest.raises(tome_client.BadAnswer),
    ):
        getattr(client, method)(sound, windows="each")


def test_a_sound_that_cannot_be_read(make):
    with (
        answering(400, PROBLEM) as (url, received),
        make(url, retry=QUICK) as client,
        pytest.raises(tome_client.BadMedia, match="400 x: y"),
    ):
        client.visualize(SOUND, windows="first")
    assert [query for query, _, _ in received] == [{"windows": ["first"]}]  # not sent again


def test_against_a_real_server(make, ear_server):
    clip = sound(3)
    with make(ear_server.url) as client:
        images, ear, *_ = client.models()
        assert (images.modality, images.window_seconds) == ("image", None)
        assert (ear.modality, ear.window_seconds) == ("audio", pytest.approx(1.28, abs=0.02))
        found = client.classify(clip, r=2, windows="each", model="ear")
        assert (found.modality, found.r, len(found.windows)) == ("audio", "2", 3)
        assert found.media == Media(3, 16_000, 1)
        mean = np.mean([window.predictions[0].score for window in found.windows])
        assert 0 < mean <= 1
        rows = client.embed(clip, r=2, windows="each", model="ear")
        assert rows.shape == (3, 32)
        np.testing.assert_allclose(
            client.embed(clip, r=2, model="ear"),
            rows.mean(axis=0),
            atol=0.02 * np.abs(rows).max(),
        )
        short, long = client.embed_many([sound(1), clip], windows="each", model="ear")
        assert (short.shape, long.shape) == ((1, 32), (3, 32))
        with pytest.raises(tome_client.BadMedia):
            client.embed_many([clip, clip[:30]], windows="each", model="ear")
        assert client.visualize(clip, r=2, model="ear").startswith(b"\x89PNG")
        several = client.classify_many([clip, SNEAKER, b"RIFF"], model="ear")
        assert several[0].media == found.media
        assert isinstance(several[1], tome_client.UnsupportedFormat)
        with pytest.raises(tome_client.BadMedia):
            client.classify(clip[:30], model="ear")
        with pytest.raises(tome_client.InvalidParameter):
            client.classify(SNEAKER, windows="first", model="tiny")

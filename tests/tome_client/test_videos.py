"""Videos: what both clients send for one, and what they make of the answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import ROOT
from tests.server.tiny_clip import LABELS
from tests.tome_client.test_client import ONCE, Blocking
from tests.tome_client.test_sounds import COMMON, PREDICTION, TOKENS, answering
from tome_client import (
    BadMedia,
    Client,
    InvalidParameter,
    Prediction,
    Tokens,
    UnsupportedFormat,
    Video,
    Window,
)

VIDEO = b"\0\0\0\x18ftypisom and so on"
SPAN = {"start": 0.0, "end": 2.6}
ANSWER: dict[str, Any] = {
    **COMMON,
    "modality": "video",
    "media": {
        "seconds": 5.5,
        "frames": 132,
        "frame_rate": 24.0,
        "width": 1280,
        "height": 720,
        "codec": "h264",
    },
    "predictions": [PREDICTION],
    "windows": [
        {**SPAN, "crop": crop, "r": "8", "tokens": TOKENS, "predictions": [PREDICTION]}
        for crop in range(3)
    ],
}


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def make(request) -> Any:
    return request.param


def test_the_answer_has_the_video_and_its_crops(make):
    with answering(200, ANSWER) as (url, received), make(url, retry=ONCE) as client:
        found = client.classify(VIDEO, windows="each", clips=1, crops=3)
    assert received[0][0] == {"windows": ["each"], "clips": ["1"], "crops": ["3"]}
    assert received[0][2] == VIDEO
    assert found.media == Video(5.5, 132, 24.0, 1280, 720, "h264")
    predictions = (Prediction("en", 2, 0.75),)
    assert found.windows == tuple(
        Window(0.0, 2.6, "8", predictions, Tokens(129, 40), crop) for crop in range(3)
    )


@pytest.mark.parametrize("method", ["classify", "classify_many", "embed", "embed_many"])
def test_clips_and_crops_are_sent_by_each_method(make, method):
    many = method.endswith("many")
    windows = [{**window, "embedding": [0.5]} for window in ANSWER["windows"]]
    answer = {**ANSWER, "windows": windows, "results": [ANSWER]}
    with answering(200, answer) as (url, received), make(url, retry=ONCE) as client:
        getattr(client, method)([VIDEO] if many else VIDEO, windows="each", clips=5, crops=3)
    assert received[0][0] == {"windows": ["each"], "clips": ["5"], "crops": ["3"]}


def test_a_picture_of_a_video_is_requested(make):
    with answering(200, ANSWER) as (url, received), make(url, retry=ONCE) as client:
        client.visualize(VIDEO, clips=2)
    assert received[0][0] == {"clips": ["2"]}


def test_against_a_real_server(make, clip_server):
    video = ROOT / "examples" / "rabbit.mp4"
    with make(clip_server.url) as client:
        model = {each.name: each for each in client.models()}["clip"]
        assert (model.modality, model.frames, model.sampling, model.stride) == (
            "video",
            8,
            "stride",
            2,
        )
        assert (model.clips, model.crops, model.input_size) == (1, 1, (3, 8 * 32, 32))
        found = client.classify(video, model="clip", r=4, windows="each", clips=2, crops=3)
        assert found.media == Video(4, 100, 25, 320, 180, "h264")
        assert [window.crop for window in found.windows] == [0, 1, 2] * 2
        assert found.label in LABELS
        rows = client.embed(video, model="clip", r=4, windows="each", crops=3)
        assert rows.shape == (3, 32)
        assert client.visualize(video, model="clip", r=4).startswith(b"\x89PNG")
        with pytest.raises(InvalidParameter):
            client.classify(video, model="clip", crops=2)
        with pytest.raises(UnsupportedFormat, match="takes images"):
            client.classify(video, model="tiny")
        with pytest.raises(BadMedia):
            client.classify(video.read_bytes()[:2000], model="clip")

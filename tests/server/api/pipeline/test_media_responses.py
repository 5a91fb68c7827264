"""What is answered for the windows of one sound or video."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.api.contract.params import Params
from server.api.contract.schemas import Answer, Answers, Timing
from server.api.contract.windows import Windows
from server.api.pipeline.media_responses import FinishedMedia
from server.api.pipeline.response_kinds import CLASSES, FEATURES, PICTURE, RAW_FEATURES
from server.ipc.messages import Outcome
from server.media.decoded import SoundInfo, VideoInfo, Window
from tests.server.api.pipeline.fakes import AUDIO_MODEL, VIDEO_MODEL
from tests.server.api.pipeline.test_response_kinds import finished as finished_image
from tome_core.schedule import Schedule

WINDOWS = (Window(0.0, 0.16), Window(0.1234567, 0.2834567))
# All classes, best first, as the engine returns them.
FIRST = Outcome(1, None, Schedule.constant(1), (0.6, 0.3, 0.1), (2, 0, 1), 6)
SECOND = Outcome(2, None, Schedule.constant(3), (0.8, 0.2, 0.0), (0, 1, 2), 4)


def finished(
    *outcomes: Outcome, windows: Windows = Windows.MEAN, inputs: Any = None
) -> FinishedMedia:
    params = Params(AUDIO_MODEL, (Schedule.constant(1),), "auto", 2, None, windows)
    info = SoundInfo(seconds=0.2834567, sample_rate=44_100, channels=2)
    timing = Timing(decode=1, queue=2, forward=3)
    return FinishedMedia(params, info, WINDOWS[: len(outcomes)], outcomes, timing, 4, inputs)


CROPS = (Window(0.0, 0.5, 0), Window(0.0, 0.5, 2))
VIDEO = VideoInfo(seconds=1.2345678, frames=31, frame_rate=25.0, width=64, height=48, codec="vp9")


def finished_video(
    *outcomes: Outcome, windows: Windows = Windows.MEAN, inputs: Any = None
) -> FinishedMedia:
    params = Params(VIDEO_MODEL, (Schedule.constant(1),), "1", 2, None, windows)
    timing = Timing(decode=1, queue=2, forward=3)
    return FinishedMedia(params, VIDEO, CROPS[: len(outcomes)], outcomes, timing, 4, inputs)


def test_scores_are_means_over_the_windows():
    answer = CLASSES.build_media(finished(FIRST, SECOND)).model_dump()
    predictions = answer.pop("predictions")
    assert [each["label"] for each in predictions] == ["cat", "fish"]
    assert [each["score"] for each in predictions] == pytest.approx([0.55, 0.3])
    assert answer == {
        "model": "ear",
        "r": "3",  # of the window that merged most
        "r_requested": "auto",
        "merging": "paper",
        "tokens": {"input": 10, "output": 4},
        "timing_ms": {"decode": 1, "queue": 2, "forward": 3},
        "batch_size": 4,
        "modality": "audio",
        "media": {"seconds": 0.283457, "sample_rate": 44_100, "channels": 2},
    }


def test_the_scores_of_one_window_are_those_of_the_model():
    outcome = FIRST._replace(scores=(0.6, 0.3), classes=(2, 0))
    answer = CLASSES.build_media(finished(outcome))
    assert [(each.index, each.score) for each in answer.predictions] == [(2, 0.6), (0, 0.3)]


def test_each_window_has_its_place_in_time_and_its_own_classes():
    answer = CLASSES.build_media(finished(FIRST, SECOND, windows=Windows.EACH)).model_dump()
    first, second = answer["windows"]
    assert (first["start"], first["end"], first["r"]) == (0.0, 0.16, "1")
    assert (second["start"], second["end"], second["r"]) == (0.123457, 0.283457, "3")
    assert [each["label"] for each in first["predictions"]] == ["fish", "cat"]
    assert [each["score"] for each in second["predictions"]] == [0.8, 0.2]
    assert second["tokens"] == {"input": 10, "output": 4}
    assert len(answer["predictions"]) == 2


def with_features(outcome: Outcome, *values: float) -> Outcome:
    return outcome._replace(features=np.array(values, "<f4").tobytes())


def test_features_are_means_or_those_of_each_window():
    outcomes = (with_features(FIRST, 1, -2), with_features(SECOND, 3, 0))
    assert FEATURES.build_media(finished(*outcomes)).embedding == [2.0, -1.0]
    each = FEATURES.build_media(finished(*outcomes, windows=Windows.EACH)).model_dump()
    assert each["embedding"] == [2.0, -1.0]
    assert [window["embedding"] for window in each["windows"]] == [[1.0, -2.0], [3.0, 0.0]]


def test_raw_features_are_one_row_or_one_for_each_window():
    outcomes = (with_features(FIRST, 1, -2), with_features(SECOND, 3, 0))
    mean = RAW_FEATURES.build_media(finished(*outcomes))
    assert np.frombuffer(mean, "<f4").tolist() == [2.0, -1.0]
    each = RAW_FEATURES.build_media(finished(*outcomes, windows=Windows.EACH))
    assert np.frombuffer(each, "<f4").tolist() == [1.0, -2.0, 3.0, 0.0]


def test_a_picture_shows_the_windows_below_each_other():
    source = np.arange(10, dtype="<i4").tobytes()
    outcomes = tuple(outcome._replace(source=source) for outcome in (FIRST, SECOND))
    inputs = np.random.default_rng(0).standard_normal((2, 1, 8, 16)).astype(np.float32)
    one = picture_of(finished(outcomes[0], inputs=inputs[:1]))
    both = picture_of(finished(*outcomes, windows=Windows.EACH, inputs=inputs))
    assert both.width == one.width
    assert both.height > 2 * one.height
    assert (np.asarray(both)[: one.height] == np.asarray(one)).all()


def test_a_video_is_answered_as_a_sound_is_with_its_crops():
    each = finished_video(FIRST, SECOND, windows=Windows.EACH)
    answer = CLASSES.build_media(each).model_dump()
    assert answer["modality"] == "video"
    assert answer["media"] == {
        "seconds": 1.234568, "frames": 31, "frame_rate": 25.0, "width": 64, "height": 48,
        "codec": "vp9",
    }  # fmt: skip
    assert [(each["start"], each["end"], each["crop"]) for each in answer["windows"]] == [
        (0.0, 0.5, 0),
        (0.0, 0.5, 2),
    ]
    assert (
        answer["predictions"]
        == CLASSES.build_media(finished(FIRST, SECOND)).model_dump()["predictions"]
    )
    outcomes = [FIRST._replace(features=bytes(8)), SECOND._replace(features=bytes(8))]
    features = FEATURES.build_media(finished_video(*outcomes, windows=Windows.EACH)).model_dump()
    assert [window["crop"] for window in features["windows"]] == [0, 2]
    assert features["media"] == answer["media"]


def test_the_picture_of_a_video_is_a_contact_sheet_for_each_window():
    outcomes = [
        outcome._replace(source=np.arange(8, dtype="<i4").tobytes()) for outcome in (FIRST, SECOND)
    ]
    inputs = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 8), np.uint8)
    one = picture_of(finished_video(outcomes[0], inputs=inputs[:1]))
    assert one.width > one.height  # two frames side by side
    both = picture_of(finished_video(*outcomes, windows=Windows.EACH, inputs=inputs))
    assert both.width == one.width
    assert both.height > 2 * one.height
    assert (np.asarray(both)[: one.height] == np.asarray(one)).all()


def picture_of(media: FinishedMedia) -> Image.Image:
    return Image.open(io.BytesIO(PICTURE.build_media(media)))


def test_a_list_of_results_keeps_the_fields_of_each_of_them():
    one = FIRST._replace(scores=(0.6,), classes=(2,))
    results = [
        Answer(**CLASSES.build(finished_image(classes=(2,), scores=(0.5,)))),
        CLASSES.build_media(finished(one)),
        CLASSES.build_media(finished(FIRST, SECOND, windows=Windows.EACH)),
        CLASSES.build_media(finished_video(one)),
        CLASSES.build_media(finished_video(FIRST, SECOND, windows=Windows.EACH)),
    ]
    listed = Answers(results=results).model_dump(mode="json")["results"]
    assert listed == [result.model_dump(mode="json") for result in results]

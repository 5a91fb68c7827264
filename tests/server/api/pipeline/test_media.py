"""The way of a sound or video through the pipeline, with a made-up decoder and router."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from server.api.contract.params import Params
from server.api.contract.schemas import (
    Answer,
    Problem,
    SoundAnswer,
    SoundAnswerByWindow,
    VideoAnswerByWindow,
)
from server.api.contract.views import Views
from server.api.contract.windows import Windows
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import Admission, BodyLimits
from server.api.pipeline.base64_image import Base64Image
from server.api.pipeline.body import ParsedRequest
from server.api.pipeline.image import ImagePath
from server.api.pipeline.inference import InferencePipeline
from server.api.pipeline.inference_request import InferenceRequest
from server.api.pipeline.media import MediaPath
from server.api.pipeline.response_kinds import CLASSES, FEATURES
from server.api.pipeline.threads import Threads
from server.engine_client.link import Result
from server.errors import BadMedia, InferenceFailed, Overloaded, UnsupportedFormat
from server.ipc.messages import BatchDone, Failure, Outcome
from server.media.decoded import Decoded, SoundInfo, VideoInfo, Window
from server.media.modality import Modality
from server.media.transforms import MediaTransform, VideoTransform
from server.metrics.api import Metrics
from tests.server.api.pipeline.fakes import (
    AUDIO_MODEL,
    VIDEO_MODEL,
    FakeRouter,
    FakeRun,
    request_of,
)
from tests.server.wire import SNEAKER
from tome_core.schedule import Schedule

PARAMS = Params(AUDIO_MODEL, (Schedule.constant(1),), "1", top_k=1, deadline=None)
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=XX"}


class FakeDecoder:
    """Makes a window of each byte of a body: its input has that value everywhere."""

    def __init__(self) -> None:
        self.cancelled = 0

    async def decode(self, body: bytes, transform: MediaTransform) -> Decoded:
        if body == b"hang":
            try:
                return await asyncio.Future()
            finally:
                self.cancelled += 1
        if body.startswith(b"?"):
            raise BadMedia("the sound is corrupt")
        if not body.isalpha():
            raise UnsupportedFormat(f"the body is not a {transform.modality.noun}")
        if isinstance(transform, VideoTransform):
            return clips_of(body[0], transform)
        inputs = np.stack([np.full(transform.size, byte, np.float32) for byte in body])
        windows = tuple(Window(float(start), float(start + 1)) for start in range(len(body)))
        return Decoded(inputs, windows, SoundInfo(float(len(body)), 8_000, 1))


def clips_of(byte: int, transform: VideoTransform) -> Decoded:
    """The inputs of a video: clips, and their crops, of ever larger values."""
    places = [(clip, crop) for clip in range(transform.clips) for crop in range(transform.crops)]
    inputs = np.stack(
        [np.full(transform.size, byte + number, np.uint8) for number in range(len(places))]
    )
    windows = tuple(Window(float(clip), clip + 0.5, crop) for clip, crop in places)
    return Decoded(inputs, windows, VideoInfo(2.0, 50, 25.0, 64, 48, "h264"))


def result_of(class_index: int = 0, failure: Failure | None = None, r: int = 1) -> Result:
    if failure:
        outcome = Outcome(1, failure)
    else:
        # All classes, of which the one has all of the score.
        classes = (class_index, *({0, 1, 2} - {class_index}))
        outcome = Outcome(
            1, None, Schedule.constant(r), (1.0, 0.0, 0.0), classes, 10 - r, features=bytes(8)
        )
    return Result(outcome, BatchDone("ear", (outcome,), images=1, forward_seconds=0.25))


class Pipeline:
    """A pipeline with the parts that a test looks at, for a model of sound."""

    def __init__(self, *results: Result, slots: int = 4, max_total_bytes: int = 10**6) -> None:
        self.router = FakeRouter(slots=slots, results=list(results))
        self.slots = slots
        limits = dict.fromkeys(Modality, BodyLimits(10**6, 30))
        self.admission = Admission(self.router, limits, max_total_bytes)  # type: ignore[arg-type]
        self.metrics = Metrics()
        self.decoder = FakeDecoder()
        threads = Threads(1)
        path = MediaPath(
            self.router,  # type: ignore[arg-type]
            self.admission,
            self.metrics,
            self.decoder,
            threads,
        )
        self.inference = InferencePipeline(
            self.router,  # type: ignore[arg-type]
            self.admission,
            self.metrics,
            threads,
            ImagePath(self.router, self.metrics, no_image, threads),  # type: ignore[arg-type]
            path,
        )
        self.context = RequestContext("id", path="/classify", started=0.0)

    def run(self, work: Any) -> Any:
        """Return what ``work`` returns. Whatever happens, it leaves nothing behind."""
        try:
            return asyncio.run(work)
        finally:
            assert self.router.slots == self.slots
            assert (self.admission.admitted, self.admission.bytes_held) == (0, 0)

    def infer(self, body: bytes, headers: dict[str, str] | None = None, **params: Any) -> Any:
        request = InferenceRequest(replace(PARAMS, **params), CLASSES, self.context)
        return self.run(self.inference.infer(request_of([body], headers), request))

    def images(self) -> float | None:
        labels = {"model": "ear", "r": "other"}
        return self.metrics.registry.get_sample_value("tome_images_total", labels)


def no_image(body: bytes, transform: Any) -> Any:
    raise AssertionError("a sound is no image")


def values(pipeline: Pipeline) -> bytes:
    """The windows that ran, in their order."""
    return bytes(int(run.value) for run in pipeline.router.runs)


def test_a_sound_of_one_window_is_one_job():
    pipeline = Pipeline(result_of(2))
    answer = pipeline.infer(b"a")
    assert type(answer) is SoundAnswer
    assert answer.predictions[0].label == "fish"
    assert answer.media.model_dump() == {"seconds": 1.0, "sample_rate": 8_000, "channels": 1}
    assert list(pipeline.context.stages) == ["body", "decode", "queue", "forward"]
    (run,) = pipeline.router.runs
    assert (run.top_k, run.keep_slot) == (1, False)
    assert pipeline.images() == 1


def test_several_windows_run_at_once_where_slots_are_free():
    pipeline = Pipeline(result_of(2), result_of(0), result_of(2), slots=4)
    answer = pipeline.infer(b"abc")
    assert (answer.predictions[0].label, answer.predictions[0].score) == ("fish", 2 / 3)
    assert values(pipeline) == b"abc"
    assert len({run.slot for run in pipeline.router.runs}) == 3
    assert {run.top_k for run in pipeline.router.runs} == {3}
    assert not any(run.keep_slot for run in pipeline.router.runs)
    assert answer.timing_ms.forward == 750
    assert pipeline.images() == 3


def test_windows_run_in_rounds_where_few_slots_are_free():
    pipeline = Pipeline(*[result_of()] * 5, slots=2)
    pipeline.infer(b"abcde")
    assert values(pipeline) == b"abcde"
    kept = [run.keep_slot for run in pipeline.router.runs]
    assert kept == [True, False, True, False, False]
    assert [run.slot for run in pipeline.router.runs] == [1, 0, 1, 0, 1]


def test_one_slot_is_enough():
    pipeline = Pipeline(*[result_of()] * 3, slots=1)
    pipeline.infer(b"abc")
    assert [(run.slot, run.keep_slot) for run in pipeline.router.runs] == [
        (0, True),
        (0, True),
        (0, False),
    ]


def test_the_first_window_alone_is_run_on_request():
    pipeline = Pipeline(result_of(1))
    answer = pipeline.infer(b"abc", windows=Windows.FIRST)
    assert values(pipeline) == b"a"
    assert answer.media.seconds == 3.0


def test_each_window_is_answered_on_request():
    answer = Pipeline(result_of(2), result_of(0)).infer(b"ab", windows=Windows.EACH)
    assert type(answer) is SoundAnswerByWindow
    assert [window.predictions[0].label for window in answer.windows] == ["fish", "cat"]
    assert [(window.start, window.end) for window in answer.windows] == [(0, 1), (1, 2)]


def test_windows_of_an_adaptive_r_may_differ():
    pipeline = Pipeline(result_of(r=4), result_of(r=0))
    answer = pipeline.infer(b"ab", windows=Windows.EACH)
    assert [window.r for window in answer.windows] == ["4", "0"]
    assert (answer.r, answer.tokens.output, pipeline.context.r) == ("4", 6, "4")


def test_features_of_several_windows_need_no_classes():
    pipeline = Pipeline(result_of(), result_of())
    request = InferenceRequest(replace(PARAMS, top_k=0), FEATURES, pipeline.context)
    answer = pipeline.run(pipeline.inference.infer(request_of([b"ab"]), request))
    assert answer.embedding == [0.0, 0.0]
    assert {run.top_k for run in pipeline.router.runs} == {0}


def test_one_window_that_fails_fails_the_sound():
    pipeline = Pipeline(result_of(), result_of(failure=Failure.FAILED), result_of())
    with pytest.raises(InferenceFailed):
        pipeline.infer(b"abc")


def test_the_windows_count_against_the_deadline():
    pipeline = Pipeline()
    pipeline.router.needed_seconds = 4.0
    with pytest.raises(Overloaded) as caught:
        pipeline.infer(b"abcdefgh", deadline=time.monotonic() + 10)
    assert caught.value.extensions == {"reason": "deadline"}
    assert not pipeline.router.runs


def test_windows_that_wait_count_as_bytes_in_memory():
    size = int(np.prod(AUDIO_MODEL.transform.size)) * 4
    pipeline = Pipeline(*[result_of()] * 2, max_total_bytes=3 * size - 1)
    pipeline.infer(b"ab")
    with pytest.raises(Overloaded, match="too many bytes"):
        pipeline.infer(b"abc")


def test_a_disconnected_client_ends_the_decoding():
    pipeline = Pipeline()
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"hang", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01 if len(messages) == 1 else 0)
        return messages.pop(0)

    http_request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    request = InferenceRequest(PARAMS, CLASSES, pipeline.context)
    with pytest.raises(ClientDisconnect):
        pipeline.run(pipeline.inference.infer(http_request, request))
    assert pipeline.decoder.cancelled == 1
    assert pipeline.context.stage == "decode"


VIDEO_PARAMS = replace(PARAMS, model=VIDEO_MODEL)


def infer_video(pipeline: Pipeline, body: bytes, **params: Any) -> Any:
    request = InferenceRequest(replace(VIDEO_PARAMS, **params), CLASSES, pipeline.context)
    return pipeline.run(pipeline.inference.infer(request_of([body]), request))


def test_each_clip_of_a_video_is_a_job_of_pixels():
    pipeline = Pipeline(result_of(2), result_of(0))
    answer = infer_video(pipeline, b"a", windows=Windows.EACH)
    assert type(answer) is VideoAnswerByWindow
    assert values(pipeline) == b"ab"
    assert [(window.start, window.crop) for window in answer.windows] == [(0, 0), (1, 0)]
    assert answer.media.frames == 50


def test_a_request_chooses_clips_and_crops():
    pipeline = Pipeline(*[result_of()] * 3, slots=2)
    answer = infer_video(pipeline, b"a", views=Views(clips=1, crops=3), windows=Windows.EACH)
    assert values(pipeline) == b"abc"
    assert [window.crop for window in answer.windows] == [0, 1, 2]


def test_the_first_crop_of_the_first_clip_alone_is_run_on_request():
    pipeline = Pipeline(result_of())
    infer_video(pipeline, b"a", views=Views(crops=3), windows=Windows.FIRST)
    assert values(pipeline) == b"a"


def test_an_empty_body_is_no_video():
    with pytest.raises(BadMedia, match="send an encoded video"):
        infer_video(Pipeline(), b"")


def test_a_model_of_video_names_what_is_none():
    with pytest.raises(UnsupportedFormat, match=r"an image \(JPEG\); clip takes videos: allowed"):
        infer_video(Pipeline(), SNEAKER)
    with pytest.raises(UnsupportedFormat, match="the body is not a video"):
        infer_video(Pipeline(), b"123")


def test_an_empty_body_is_no_sound():
    with pytest.raises(BadMedia, match="empty"):
        Pipeline().infer(b"")


def test_an_image_is_named_and_what_the_model_takes():
    with pytest.raises(UnsupportedFormat) as caught:
        Pipeline().infer(SNEAKER)
    assert caught.value.detail == (
        "the body is an image (JPEG); ear takes sounds: allowed are WAV, FLAC, OGG (Vorbis, Opus)"
        " and MP3"
    )


def test_what_is_neither_image_nor_sound_has_the_decoders_error():
    with pytest.raises(UnsupportedFormat, match="not a sound"):
        Pipeline().infer(b"123")


def test_sounds_in_json_are_answered_as_images_are():
    text = base64.b64encode(b"a").decode()
    pipeline = Pipeline(result_of(2))
    answer = pipeline.infer(json.dumps({"audio": text}).encode(), JSON)
    assert isinstance(answer, Answer)

    pipeline = Pipeline(result_of(2), result_of(1))
    listed = [text, "no base64!", base64.b64encode(b"?").decode(), text]
    results = pipeline.infer(json.dumps({"audios": listed}).encode(), JSON)
    assert [getattr(result, "status", 200) for result in results] == [200, 400, 400, 200]
    assert results[1].type == results[2].type == "urn:tome:problem:bad-media"


def test_base64_is_freed_when_its_bytes_do_not_count_any_more():
    text = base64.b64encode(b"nowhereelse").decode()
    kept: list[bool] = []

    class Runs(list[FakeRun]):
        def append(self, run: FakeRun) -> None:
            images = [each for each in gc.get_objects() if type(each) is Base64Image]
            kept.append(any(each.text == text.encode() for each in images))
            super().append(run)

    pipeline = Pipeline(result_of())
    pipeline.router.runs = Runs()
    pipeline.infer(json.dumps({"audio": text}).encode(), JSON, windows=Windows.FIRST)
    assert kept == [False]


def test_each_sound_of_a_form_gets_its_own_result():
    header = b"--XX\r\nContent-Type: audio/wav\r\n\r\n"
    body = b"".join(header + content + b"\r\n" for content in (b"ab", b"?", b"c")) + b"--XX--\r\n"
    results = Pipeline(*[result_of()] * 3).infer(body, FORM)
    assert [type(result) for result in results] == [SoundAnswer, Problem, SoundAnswer]


def test_inputs_of_the_model_itself_need_no_decoder():
    pipeline = Pipeline(result_of(2))
    pixels = np.full(AUDIO_MODEL.transform.size, 7, np.float32)

    def parse(body: bytes) -> ParsedRequest:
        return ParsedRequest(PARAMS, [pixels])

    work = pipeline.inference.infer_parsed(
        request_of([b"pixels"]), AUDIO_MODEL.modality, parse, lambda _: CLASSES, pipeline.context
    )
    _, (answer,) = pipeline.run(work)
    assert answer["predictions"][0]["label"] == "fish"
    assert values(pipeline) == b"\x07"


def test_more_sounds_than_slots_take_turns():
    pipeline = Pipeline(*[result_of(index) for index in (0, 1, 2, 2)], slots=2)
    work = pipeline.inference.infer_parsed(
        request_of([b"x"]),
        AUDIO_MODEL.modality,
        lambda _: ParsedRequest(PARAMS, [b"a", b"b", b"cd"]),
        lambda _: CLASSES,
        pipeline.context,
    )
    _, answers = pipeline.run(work)
    labels = [answer.predictions[0].label for answer in answers]
    assert labels == ["cat", "dog", "fish"]
    assert values(pipeline) == b"abcd"
    runs = pipeline.router.runs
    assert [run.keep_slot for run in runs] == [True, False, False, False]
    assert runs[0].slot == runs[2].slot

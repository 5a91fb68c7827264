"""The way of an image through the pipeline, with a router that has no engines."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from server.api.contract.params import Params
from server.api.contract.schemas import Answer, Problem
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import Admission, BodyLimits
from server.api.pipeline.body import ParsedRequest
from server.api.pipeline.image import ImagePath
from server.api.pipeline.inference import InferencePipeline, record_stage
from server.api.pipeline.inference_request import InferenceRequest
from server.api.pipeline.response_kinds import CLASSES
from server.api.pipeline.threads import Threads
from server.engine_client.link import Result
from server.errors import (
    BadImage,
    DeadlineExceeded,
    EngineLost,
    InferenceFailed,
    InvalidParameter,
    Overloaded,
    RequestError,
    TooLarge,
    UnsupportedFormat,
)
from server.imaging.decode import decode
from server.imaging.small import MAX_SMALL_BYTES
from server.ipc.messages import BatchDone, Failure, ModelInfo, Outcome
from server.media.modality import Modality
from server.metrics.api import Metrics
from tests.server.api.pipeline.fakes import MODEL, FakeRouter, request_of
from tests.server.wire import SNEAKER
from tome_core.schedule import Schedule

PARAMS = Params(
    model=MODEL,
    choices=(Schedule.constant(1),),
    requested_r="1",
    top_k=1,
    deadline=None,
)
LARGE = SNEAKER + bytes(MAX_SMALL_BYTES)  # in bytes: they follow its end
FORM = {"content-type": "multipart/form-data; boundary=XX"}


def result_of(failure: Failure | None = None, class_index: int = 0) -> Result:
    if failure:
        outcome = Outcome(1, failure)
    else:
        schedule = Schedule.constant(1)
        outcome = Outcome(1, schedule=schedule, scores=(0.5,), classes=(class_index,))
    return Result(outcome, BatchDone("tiny", (outcome,), images=1))


def form(*files: bytes) -> list[bytes]:
    header = b'--XX\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    return [header + content + b"\r\n" for content in files] + [b"--XX--\r\n"]


def label_of(answer: dict[str, Any]) -> str:
    """The best label of a valid answer."""
    return Answer.model_validate(answer).predictions[0].label


class NoMediaPath:
    async def infer(self, media: Any, lease: Any, request: Any) -> Any:
        raise AssertionError("an image is no sound or video")


class Pipeline:
    """An `InferencePipeline` with the parts that a test looks at."""

    def __init__(self, results: Sequence[Result | EngineLost], slots: int = 4) -> None:
        self.router = FakeRouter(slots=slots, results=list(results))
        self.slots = slots
        limits = dict.fromkeys(Modality, BodyLimits(10**6, 30))
        self.admission = Admission(self.router, limits, 10**6)  # type: ignore[arg-type]
        self.metrics = Metrics()
        self.threads = Threads(1)
        image_path = ImagePath(
            self.router,  # type: ignore[arg-type]
            self.metrics,
            partial(decode, max_pixels=10**6, max_side=4000),
            self.threads,
        )
        self.inference = InferencePipeline(
            self.router,  # type: ignore[arg-type]
            self.admission,
            self.metrics,
            self.threads,
            image_path,
            NoMediaPath(),
        )
        self.context = RequestContext("id", path="/classify", started=0.0)
        self.request = InferenceRequest(PARAMS, CLASSES, self.context)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what ``work`` returns. Whatever happens, it leaves nothing behind."""
        try:
            return asyncio.run(work)
        finally:
            assert self.router.slots == self.slots
            assert (self.admission.admitted, self.admission.bytes_held) == (0, 0)

    def infer(self, chunks: list[bytes], headers: dict[str, str] | None = None) -> Any:
        request = request_of(chunks, headers)
        return self.run(self.inference.infer(request, self.request))

    def infer_pixels(self, pixels: list[np.ndarray], params: Params = PARAMS) -> Any:
        """The answers for images that need no decoding, in one request."""

        def parse(body: bytes) -> ParsedRequest:
            return ParsedRequest(params, list(pixels))

        request = request_of([b"pixels"])
        work = self.inference.infer_parsed(request, MODEL, parse, CLASSES, self.context)
        _, answers = self.run(work)
        return answers

    def infer_together(self, chunks: list[bytes]) -> Any:
        request = replace(self.request, fail_together=True)
        return self.run(self.inference.infer(request_of(chunks, FORM), request))


def test_an_image_as_the_body_gets_one_response():
    pipeline = Pipeline([result_of(class_index=2)])
    answer = pipeline.infer([SNEAKER[:100], SNEAKER[100:]])
    assert label_of(answer) == "fish"
    assert list(pipeline.context.stages) == ["body", "decode", "queue", "forward"]
    assert pipeline.context.r == "1"


@pytest.mark.parametrize(
    ("failure", "error", "reason"),
    [
        ("expired", DeadlineExceeded, None),
        ("refused", Overloaded, "deadline"),
        ("out-of-memory", Overloaded, "out-of-memory"),
        ("failed", InferenceFailed, None),
    ],
)
def test_a_failed_outcome_is_an_error(failure, error, reason):
    with pytest.raises(error) as caught:
        Pipeline([result_of(failure)]).infer([SNEAKER])
    assert caught.value.extensions.get("reason") == reason


def test_an_image_that_cannot_be_decoded_never_runs():
    pipeline = Pipeline([result_of()])
    with pytest.raises(UnsupportedFormat):
        pipeline.infer([b"hello"])
    assert len(pipeline.router.results) == 1


def test_each_file_of_a_form_gets_its_own_result():
    pipeline = Pipeline([result_of(), result_of()])
    results = pipeline.infer(form(SNEAKER, b"hello", SNEAKER), FORM)
    assert [type(result) for result in results] == [dict, Problem, dict]
    assert results[1].status == 415


def test_a_file_without_a_free_slot_fails_alone():
    pipeline = Pipeline([result_of()], slots=1)
    results = pipeline.infer(form(SNEAKER, SNEAKER), FORM)
    assert [type(result) for result in results] == [dict, Problem]
    assert results[1].status == 503


def test_images_that_fail_together_return_their_responses_in_order():
    pipeline = Pipeline([result_of(), result_of()])
    answers = pipeline.infer_together(form(SNEAKER, SNEAKER))
    assert [label_of(answer) for answer in answers] == ["cat", "cat"]


def test_images_that_fail_together_raise_the_error_of_one_with_its_index():
    pipeline = Pipeline([result_of()] * 3)
    with pytest.raises(UnsupportedFormat) as caught:
        pipeline.infer_together(form(SNEAKER, b"hello", SNEAKER))
    assert caught.value.extensions["index"] == 1


def test_images_that_fail_together_run_only_if_all_get_a_slot():
    pipeline = Pipeline([result_of()] * 3, slots=2)
    with pytest.raises(Overloaded):
        pipeline.infer_together(form(SNEAKER, SNEAKER, SNEAKER))
    assert len(pipeline.router.results) == 3


def test_a_malformed_form_is_refused():
    with pytest.raises(BadImage, match="malformed"):
        Pipeline([]).infer([b"--XX\r\n"], FORM)


JSON = {"content-type": "application/json"}
SNEAKER_TEXT = base64.b64encode(SNEAKER).decode()


def json_body(message: object) -> list[bytes]:
    encoded = json.dumps(message).encode()
    return [encoded[:100], encoded[100:]]


def test_one_image_in_json_gets_one_response():
    answer = Pipeline([result_of()]).infer(json_body({"image": SNEAKER_TEXT}), JSON)
    assert label_of(answer) == "cat"


def test_each_image_of_a_json_list_gets_its_own_result():
    texts = [SNEAKER_TEXT, "aGVsbG8=", "no base64!", f"data:image/jpeg;base64,{SNEAKER_TEXT}"]
    results = Pipeline([result_of(), result_of()]).infer(json_body({"images": texts}), JSON)
    assert [getattr(result, "status", 200) for result in results] == [200, 415, 400, 200]
    (alone,) = Pipeline([result_of()]).infer(json_body({"images": [SNEAKER_TEXT]}), JSON)
    assert label_of(alone) == "cat"


def test_an_image_that_is_sent_as_json_is_an_image():
    assert label_of(Pipeline([result_of()]).infer([SNEAKER], JSON)) == "cat"


def test_a_wrong_json_body_is_refused():
    with pytest.raises(InvalidParameter, match="unknown member 'r'"):
        Pipeline([]).infer(json_body({"image": SNEAKER_TEXT, "r": 16}), JSON)


def test_bytes_of_base64_count_against_the_limit_of_a_body():
    with pytest.raises(TooLarge, match="more than 1000000 bytes"):
        Pipeline([]).infer(json_body({"image": "A" * 1_000_000}), JSON)


def test_a_client_that_disconnects_before_its_json_is_parsed_is_noticed():
    pipeline = Pipeline([])
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"image": "QUJD"}', "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    headers = [(b"content-type", b"application/json")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    thread_is_free = threading.Event()

    async def main() -> None:
        busy = asyncio.ensure_future(pipeline.threads.run(lambda: thread_is_free.wait(30)))
        await asyncio.sleep(0)
        try:
            await pipeline.inference.infer(request, pipeline.request)
        finally:
            thread_is_free.set()
            assert await busy, "the client was noticed only after the thread was free"

    with pytest.raises(ClientDisconnect):
        pipeline.run(main())


def test_infer_parsed_takes_parameters_and_images_from_the_body():
    pipeline = Pipeline([result_of(), result_of()])

    def parse(body: bytes) -> ParsedRequest:
        assert body == b"two sneakers"
        return ParsedRequest(PARAMS, [SNEAKER, SNEAKER])

    request = request_of([b"two ", b"sneakers"])
    work = pipeline.inference.infer_parsed(request, MODEL, parse, CLASSES, pipeline.context)
    parsed, answers = pipeline.run(work)
    assert parsed.params is PARAMS
    assert len(answers) == 2
    assert pipeline.context.model == "tiny"


PIXELS = [np.full(MODEL.transform.size, value, np.uint8) for value in range(3)]


def test_pixels_are_answered_in_their_order():
    pipeline = Pipeline([result_of(class_index=index) for index in (2, 0, 1)])
    answers = pipeline.infer_pixels(PIXELS)
    assert [label_of(answer) for answer in answers] == ["fish", "cat", "dog"]
    assert [run.value for run in pipeline.router.runs] == [0, 1, 2]
    assert list(pipeline.context.stages) == ["body", "decode", "queue", "forward"]


def test_the_error_of_pixels_says_of_which_and_cancels_the_rest():
    pipeline = Pipeline([result_of(), result_of(Failure.FAILED)])
    with pytest.raises(InferenceFailed) as caught:
        pipeline.infer_pixels(PIXELS)
    assert caught.value.extensions["index"] == 1
    assert [future.cancelled() for future in pipeline.router.futures] == [False, False, True]
    with pytest.raises(InferenceFailed) as caught:
        Pipeline([result_of(Failure.FAILED)]).infer_pixels(PIXELS[:1])
    assert "index" not in caught.value.extensions


def test_an_engine_that_is_lost_fails_all_pixels_with_one_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gc.collect()  # what other tests have left
    caplog.clear()
    pipeline = Pipeline([EngineLost("lost", retry_after=1) for _ in PIXELS])
    with pytest.raises(EngineLost) as caught:
        pipeline.infer_pixels(PIXELS)
    assert caught.value.extensions["index"] == 0
    del caught
    pipeline.router.futures.clear()
    gc.collect()
    assert not caplog.records  # such as asyncio's of errors that nobody has seen


def test_pixels_are_cancelled_at_their_deadline():
    pipeline = Pipeline([result_of()])
    with pytest.raises(DeadlineExceeded):
        pipeline.infer_pixels(PIXELS, replace(PARAMS, deadline=time.monotonic() + 1))
    assert [future.cancelled() for future in pipeline.router.futures] == [False, True, True]


def test_an_error_of_the_parser_is_the_error_of_the_request():
    pipeline = Pipeline([])

    def parse(body: bytes) -> ParsedRequest:
        raise RequestError("the body is wrong")

    work = pipeline.inference.infer_parsed(
        request_of([b"x"]), MODEL, parse, CLASSES, pipeline.context
    )
    with pytest.raises(RequestError, match="the body is wrong"):
        pipeline.run(work)


def test_an_image_that_waits_for_a_thread_is_dropped_when_its_request_is_cancelled():
    pipeline = Pipeline([])
    thread_is_free = threading.Event()
    request = replace(pipeline.request, params=replace(PARAMS, deadline=time.monotonic() + 0.05))

    async def main() -> None:
        busy = asyncio.ensure_future(pipeline.threads.run(lambda: thread_is_free.wait(30)))
        await asyncio.sleep(0)
        try:
            with pytest.raises(DeadlineExceeded):
                await pipeline.inference.infer(request_of([LARGE]), request)
        finally:
            thread_is_free.set()
            await busy

    pipeline.run(main())


def test_a_small_image_needs_no_thread():
    pipeline = Pipeline([result_of()])
    thread_is_free = threading.Event()

    async def main() -> None:
        busy = asyncio.ensure_future(pipeline.threads.run(lambda: thread_is_free.wait(30)))
        await asyncio.sleep(0)
        try:
            answer: Any = await pipeline.inference.infer(request_of([SNEAKER]), pipeline.request)
            assert answer["batch_size"] == 1
        finally:
            thread_is_free.set()
            await busy

    pipeline.run(main())


def test_of_several_images_the_longest_stage_counts():
    context = RequestContext("id", path="/", started=0.0)
    assert record_stage(context, "decode", 0.0021) == 2.1
    assert record_stage(context, "decode", 0.001) == 1.0
    assert context.stages == {"decode": 2.1}


def models_of(models: dict[str, ModelInfo]) -> Any:
    pipeline = Pipeline([])
    pipeline.router.engines.models = models
    pipeline.router.ready = False
    return pipeline.inference.models()


def test_models_are_unknown_until_they_are_loaded():
    with pytest.raises(Overloaded, match="not loaded"):
        models_of({})


def test_models_stay_known_while_an_engine_restarts():
    assert models_of({"tiny": MODEL}) == {"tiny": MODEL}


def test_a_sound_is_named_and_what_the_model_takes():
    riff = b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00"
    with pytest.raises(UnsupportedFormat) as caught:
        Pipeline([]).infer([riff])
    found, _, wanted = caught.value.detail.partition("; ")
    assert found == "the body is a sound (WAV)"
    assert wanted.startswith("tiny takes images: allowed are JPEG, PNG")

"""The way of an image through the pipeline, with a router that has no engines."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from server.api.contract.schemas import Problem
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import BodyLimits
from server.api.pipeline.body import ParsedRequest
from server.api.pipeline.image import record_stage
from server.api.pipeline.response_kinds import CLASSES
from server.errors import (
    BadImage,
    DeadlineExceeded,
    InferenceFailed,
    InvalidParameter,
    Overloaded,
    RequestError,
    TooLarge,
    UnsupportedFormat,
)
from server.imaging.small import MAX_SMALL_BYTES
from server.ipc.messages import ModelInfo
from server.media.modality import Modality
from tests.server.api.pipeline.fakes import MODEL, VIDEO_MODEL, request_of
from tests.server.api.pipeline.image_pipeline import (
    FORM,
    PARAMS,
    PIXELS,
    Pipeline,
    form,
    label_of,
    parse_as,
    result_of,
)
from tests.server.wire import SNEAKER

LARGE = SNEAKER + bytes(MAX_SMALL_BYTES)  # in bytes: they follow its end


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
    pipeline = Pipeline([result_of(class_index=2), result_of(class_index=1)])
    answers = pipeline.infer_together(form(SNEAKER, SNEAKER))
    assert [label_of(answer) for answer in answers] == ["fish", "dog"]


def test_images_that_fail_together_raise_the_error_of_one_with_its_index():
    pipeline = Pipeline([result_of()] * 3)
    with pytest.raises(UnsupportedFormat) as caught:
        pipeline.infer_together(form(SNEAKER, b"hello", SNEAKER))
    assert caught.value.extensions["index"] == 1


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
    work = pipeline.inference.infer_parsed(
        request, MODEL.modality, parse, lambda _: CLASSES, pipeline.context
    )
    parsed, answers = pipeline.run(work)
    assert parsed.params is PARAMS
    assert len(answers) == 2
    assert pipeline.context.model == "tiny"


def test_a_body_that_names_its_model_has_the_limit_of_that_model():
    pipeline = Pipeline([])
    pipeline.router.engines.models = {"tiny": MODEL, "clip": VIDEO_MODEL}
    pipeline.admission.limits = {
        Modality.IMAGE: BodyLimits(10, 30),
        Modality.VIDEO: BodyLimits(100, 30),
    }
    widest = pipeline.inference.widest_modality()
    assert widest is Modality.VIDEO
    parse = parse_as(PARAMS, PIXELS)
    for size, message in ((11, "11 bytes; allowed are 10"), (101, "more than 100 bytes")):
        work = pipeline.inference.infer_parsed(
            request_of([bytes(size)]), widest, parse, lambda _: CLASSES, pipeline.context
        )
        with pytest.raises(TooLarge, match=message):
            pipeline.run(work)
    assert (pipeline.context.model, pipeline.context.r) == ("tiny", "1")  # of the first


def test_an_error_of_the_parser_is_the_error_of_the_request():
    pipeline = Pipeline([])

    def parse(body: bytes) -> ParsedRequest:
        raise RequestError("the body is wrong")

    work = pipeline.inference.infer_parsed(
        request_of([b"x"]), MODEL.modality, parse, lambda _: CLASSES, pipeline.context
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

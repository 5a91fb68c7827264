"""The way of an image through the pipeline, with an engine pool that has no processes."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from server.api.contract.params import Params
from server.api.contract.schemas import Answer, Problem
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import Admission, BodyLimits
from server.api.pipeline.decode_pool import DecodePool
from server.api.pipeline.inference import InferencePipeline
from server.api.pipeline.inputs import ParsedRequest
from server.api.pipeline.response_kinds import CLASSES
from server.engine_client.process import Result
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
from server.ipc.messages import BatchDone, Failure, Outcome
from server.metrics import Metrics
from tests.server.api.pipeline.fakes import MODEL, FakePool, request_of
from tests.server.wire import SNEAKER
from tome_core.schedule import Schedule

PARAMS = Params(
    model=MODEL,
    choices=(Schedule.constant(1),),
    requested_r="1",
    top_k=1,
    deadline=None,
    output_kind="classes",
)
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


class Pipeline:
    """An `InferencePipeline` with the parts that a test looks at."""

    def __init__(self, results: list[Result], slots: int = 4) -> None:
        self.pool = FakePool(slots=slots, results=results)
        self.slots = slots
        limits = BodyLimits(10**6, 10**6, 30)
        self.admission = Admission(self.pool, limits)  # type: ignore[arg-type]
        self.metrics = Metrics((1,))
        self.decode_pool = DecodePool(1, 10**6, 4000)
        self.inference = InferencePipeline(
            self.pool,  # type: ignore[arg-type]
            self.admission,
            self.decode_pool,
            self.metrics,
        )
        self.context = RequestContext("id", started=0.0)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what ``work`` returns. Whatever happens, it leaves nothing behind."""
        try:
            return asyncio.run(work)
        finally:
            assert self.pool.slots == self.slots
            assert (self.admission.admitted, self.admission.bytes_held) == (0, 0)

    def infer(self, chunks: list[bytes], headers: dict[str, str] | None = None) -> Any:
        request = request_of(chunks, headers)
        return self.run(self.inference.infer(request, PARAMS, self.context, CLASSES))

    def infer_all(self, chunks: list[bytes]) -> Any:
        request = request_of(chunks, FORM)
        return self.run(self.inference.infer_all(request, PARAMS, self.context, CLASSES))


def test_an_image_as_the_body_gets_one_response():
    pipeline = Pipeline([result_of(class_index=2)])
    answer = pipeline.infer([SNEAKER[:100], SNEAKER[100:]])
    assert isinstance(answer, Answer)
    assert answer.predictions[0].label == "fish"
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
    assert len(pipeline.pool.results) == 1


def test_each_file_of_a_form_gets_its_own_result():
    pipeline = Pipeline([result_of(), result_of()])
    results = pipeline.infer(form(SNEAKER, b"hello", SNEAKER), FORM)
    assert [type(result) for result in results] == [Answer, Problem, Answer]
    assert results[1].status == 415


def test_a_file_without_a_free_slot_fails_alone():
    pipeline = Pipeline([result_of()], slots=1)
    results = pipeline.infer(form(SNEAKER, SNEAKER), FORM)
    assert [type(result) for result in results] == [Answer, Problem]
    assert results[1].status == 503


def test_infer_all_returns_the_responses_in_order():
    pipeline = Pipeline([result_of(), result_of()])
    answers = pipeline.infer_all(form(SNEAKER, SNEAKER))
    assert [answer.predictions[0].label for answer in answers] == ["cat", "cat"]


def test_infer_all_raises_the_error_of_one_file_with_its_index():
    pipeline = Pipeline([result_of()] * 3)
    with pytest.raises(UnsupportedFormat) as caught:
        pipeline.infer_all(form(SNEAKER, b"hello", SNEAKER))
    assert caught.value.extensions["index"] == 1


def test_infer_all_runs_nothing_unless_all_images_get_a_slot():
    pipeline = Pipeline([result_of()] * 3, slots=2)
    with pytest.raises(Overloaded):
        pipeline.infer_all(form(SNEAKER, SNEAKER, SNEAKER))
    assert len(pipeline.pool.results) == 3


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
    assert isinstance(answer, Answer)


def test_each_image_of_a_json_list_gets_its_own_result():
    texts = [SNEAKER_TEXT, "aGVsbG8=", "no base64!", f"data:image/jpeg;base64,{SNEAKER_TEXT}"]
    results = Pipeline([result_of(), result_of()]).infer(json_body({"images": texts}), JSON)
    assert [getattr(result, "status", 200) for result in results] == [200, 415, 400, 200]
    (alone,) = Pipeline([result_of()]).infer(json_body({"images": [SNEAKER_TEXT]}), JSON)
    assert isinstance(alone, Answer)


def test_an_image_that_is_sent_as_json_is_an_image():
    assert isinstance(Pipeline([result_of()]).infer([SNEAKER], JSON), Answer)


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
        busy = asyncio.create_task(pipeline.decode_pool.run(lambda: thread_is_free.wait(30)))
        await asyncio.sleep(0)  # so that the only thread is taken
        try:
            await pipeline.inference.infer(request, PARAMS, pipeline.context, CLASSES)
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
    work = pipeline.inference.infer_parsed(request, parse, pipeline.context, CLASSES)
    parsed, answers = pipeline.run(work)
    assert parsed.params is PARAMS
    assert len(answers) == 2
    assert pipeline.context.model == "tiny"


def test_an_error_of_the_parser_is_the_error_of_the_request():
    pipeline = Pipeline([])

    def parse(body: bytes) -> ParsedRequest:
        raise RequestError("the body is wrong")

    work = pipeline.inference.infer_parsed(request_of([b"x"]), parse, pipeline.context, CLASSES)
    with pytest.raises(RequestError, match="the body is wrong"):
        pipeline.run(work)

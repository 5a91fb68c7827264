"""Images of one request that need no decoding: they run, and fail, together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from dataclasses import replace

import pytest

from server.api.pipeline.response_kinds import CLASSES
from server.errors import DeadlineExceeded, EngineLost, InferenceFailed, Overloaded
from server.ipc.messages import Failure
from tests.server.api.pipeline.fakes import MODEL, request_of
from tests.server.api.pipeline.image_pipeline import (
    PARAMS,
    PIXELS,
    Pipeline,
    label_of,
    parse_as,
    result_of,
)


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


def test_pixels_fail_at_once_if_one_does_while_another_waits():
    """The first has no result at all."""
    pipeline = Pipeline([])

    async def main() -> None:
        parse = parse_as(PARAMS, PIXELS)
        request = request_of([b"pixels"])
        work = pipeline.inference.infer_parsed(
            request, MODEL.modality, parse, lambda _: CLASSES, pipeline.context
        )
        asking = asyncio.ensure_future(work)
        async with asyncio.timeout(30):
            while len(pipeline.router.futures) < len(PIXELS):
                await asyncio.sleep(0.001)
            pipeline.router.futures[2].set_result(result_of(Failure.OUT_OF_MEMORY))
            with pytest.raises(Overloaded) as caught:
                await asking
        assert caught.value.extensions["index"] == 2
        assert [future.cancelled() for future in pipeline.router.futures] == [True, True, False]

    pipeline.run(main())


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


def test_pixels_are_refused_if_the_last_of_them_would_miss_the_deadline():
    params = replace(PARAMS, deadline=time.monotonic() + 50)
    for images, error in ((2, None), (3, Overloaded)):
        pipeline = Pipeline([result_of()] * images)
        pipeline.router.needed_seconds = 20
        with pytest.raises(error) if error else contextlib.nullcontext():
            pipeline.infer_pixels(PIXELS[:images], params)
        assert len(pipeline.router.runs) == (0 if error else images)


def test_pixels_are_cancelled_at_their_deadline():
    pipeline = Pipeline([result_of()])
    with pytest.raises(DeadlineExceeded):
        pipeline.infer_pixels(PIXELS, replace(PARAMS, deadline=time.monotonic() + 1))
    assert [future.cancelled() for future in pipeline.router.futures] == [False, True, True]

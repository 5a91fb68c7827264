"""Inputs of one request that succeed together: their slots, their batches, and their failures."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.api.contract.confidence import Confidence
from server.errors import (
    DeadlineExceeded,
    EngineLost,
    InferenceFailed,
    TooLarge,
    UnsupportedFormat,
)
from server.imaging.small import MAX_SMALL_BYTES
from server.ipc.messages import Failure
from tests.server.api.pipeline.fakes import request_of
from tests.server.api.pipeline.image_pipeline import (
    FORM,
    PARAMS,
    PIXELS,
    Pipeline,
    form,
    label_of,
    result_of,
)
from tests.server.wire import SNEAKER
from tome_core.schedule import Schedule

LARGE = SNEAKER + bytes(MAX_SMALL_BYTES)  # is decoded in a thread
LABELS = ("cat", "dog", "fish")


def labels_of(answers: Any) -> list[str]:
    return [label_of(answer) for answer in answers]


def results(*classes: int) -> list[Any]:
    return [result_of(class_index=index) for index in classes]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_more_pixels_than_slots_run_in_rounds(slots):
    classes = (2, 0, 1, 1, 2)
    pipeline = Pipeline(results(*classes), slots=slots)
    pixels = [PIXELS[index % 3] for index in range(5)]
    assert labels_of(pipeline.infer_pixels(pixels)) == [LABELS[index] for index in classes]
    runs = pipeline.router.runs
    assert [run.value for run in runs] == [0, 1, 2, 0, 1]
    # The slot that the request holds is the first of each round, and kept but for the last.
    first_slot = runs[0].slot
    kept = [index for index, run in enumerate(runs) if run.keep_slot]
    assert kept == list(range(0, 5, slots))[:-1]
    assert {runs[index].slot for index in kept} == {first_slot}


def test_more_encoded_images_than_slots_run_in_rounds():
    pipeline = Pipeline(results(2, 0, 1), slots=2)
    answers = pipeline.infer_together(form(SNEAKER, LARGE, SNEAKER))
    # The small one is decoded first, and both are submitted when the large one is, too.
    assert labels_of(answers) == ["fish", "cat", "dog"]
    assert [run.keep_slot for run in pipeline.router.runs] == [True, False, False]


def test_an_error_of_a_later_round_has_the_index_of_the_input():
    pipeline = Pipeline(results(0, 0, 0), slots=2)
    with pytest.raises(UnsupportedFormat) as caught:
        pipeline.infer_together(form(SNEAKER, SNEAKER, SNEAKER, b"hello"))
    assert caught.value.extensions["index"] == 3
    pipeline = Pipeline([*results(0, 0), result_of(Failure.FAILED)], slots=2)
    with pytest.raises(InferenceFailed) as failed:
        pipeline.infer_pixels(PIXELS)
    assert failed.value.extensions["index"] == 2


def test_images_that_may_run_twice_need_a_slot_each():
    confidence = Confidence({Schedule.constant(1): 0.5}, Schedule.constant(0))
    pipeline = Pipeline([], slots=2)
    with pytest.raises(TooLarge, match="there are 3 images; with confidence") as caught:
        pipeline.infer_pixels(PIXELS, replace(PARAMS, confidence=confidence))
    assert caught.value.extensions["limit"] == 2
    assert not pipeline.router.runs


@contextlib.contextmanager
def busy_thread(pipeline: Pipeline) -> Iterator[threading.Event]:
    """Keep the only thread for decoding busy until the event is set, in the end at the latest."""
    is_free = threading.Event()
    busy = asyncio.ensure_future(pipeline.threads.run(lambda: is_free.wait(30)))
    try:
        yield is_free
    finally:
        is_free.set()
        assert not busy.cancelled()


async def submitted(pipeline: Pipeline, images: int) -> None:
    async with asyncio.timeout(30):
        while len(pipeline.router.runs) < images:
            await asyncio.sleep(0.001)


def test_a_batch_of_decoded_images_runs_while_others_are_decoded():
    pipeline = Pipeline(results(0, 1, 2))
    pipeline.router.max_batch = 2

    async def main() -> None:
        with busy_thread(pipeline) as is_free:
            request = replace(pipeline.request, fail_together=True)
            chunks = form(SNEAKER, LARGE, SNEAKER)
            work = pipeline.inference.infer(request_of(chunks, FORM), request)
            asking = asyncio.ensure_future(work)
            await submitted(pipeline, 2)
            assert not asking.done()
            is_free.set()
            # The second image is the last to be submitted, and answered in its place.
            assert labels_of(await asking) == ["cat", "fish", "dog"]

    pipeline.run(main())


def test_images_of_at_most_one_batch_are_submitted_together():
    pipeline = Pipeline(results(0, 1, 2))

    async def main() -> None:
        with busy_thread(pipeline) as is_free:
            request = replace(pipeline.request, fail_together=True)
            chunks = form(SNEAKER, LARGE, SNEAKER)
            work = pipeline.inference.infer(request_of(chunks, FORM), request)
            asking = asyncio.ensure_future(work)
            async with asyncio.timeout(30):
                while pipeline.context.stages.get("decode") is None:
                    await asyncio.sleep(0.001)
            assert not pipeline.router.runs
            is_free.set()
            await asking

    pipeline.run(main())


@pytest.mark.parametrize("by", ["deadline", "cancellation"])
def test_nothing_is_left_of_images_of_which_some_are_submitted_and_some_decoded(by):
    """Two are submitted, one is decoded, and one waits for a thread."""
    pipeline = Pipeline([])
    pipeline.router.max_batch = 2
    deadline = time.monotonic() + 0.5 if by == "deadline" else None
    params = replace(PARAMS, deadline=deadline)

    async def main() -> None:
        with busy_thread(pipeline):
            request = replace(pipeline.request, fail_together=True, params=params)
            chunks = form(SNEAKER, SNEAKER, SNEAKER, LARGE)
            work = pipeline.inference.infer(request_of(chunks, FORM), request)
            asking = asyncio.ensure_future(work)
            await submitted(pipeline, 2)
            if by == "cancellation":
                asking.cancel()
            with pytest.raises((DeadlineExceeded, asyncio.CancelledError)):
                await asking
            assert len(pipeline.router.runs) == 2
            assert all(future.cancelled() for future in pipeline.router.futures)
            assert pipeline.router.slots == pipeline.slots

    pipeline.run(main())


def test_an_engine_that_is_lost_between_two_batches_fails_all():
    pipeline = Pipeline([*results(0, 1), None])
    pipeline.router.max_batch = 2
    with pytest.raises(EngineLost):
        pipeline.infer_together(form(SNEAKER, SNEAKER, SNEAKER))
    assert len(pipeline.router.futures) == 2
    assert all(future.done() for future in pipeline.router.futures)


def test_images_of_a_batch_that_fails_while_others_are_decoded_fail_all():
    lost = EngineLost("the model process was lost", retry_after=1)
    pipeline = Pipeline([lost, lost, *results(2)])
    pipeline.router.max_batch = 2
    with pytest.raises(EngineLost) as caught:
        pipeline.infer_together(form(SNEAKER, LARGE, SNEAKER))
    assert caught.value.extensions["index"] == 0


def test_pixels_are_submitted_as_batches():
    pipeline = Pipeline(results(0, 1, 2, 0), slots=8)
    pipeline.router.max_batch = 3
    pixels = [*PIXELS, np.full_like(PIXELS[0], 9)]
    assert labels_of(pipeline.infer_pixels(pixels)) == ["cat", "dog", "fish", "cat"]
    assert [run.value for run in pipeline.router.runs] == [0, 1, 2, 9]

"""Images that run a second time because the first pass leaves them uncertain."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from server.api.contract.confidence import Confidence
from server.api.contract.params import Params
from server.api.contract.schemas import CascadeAnswer, Problem
from server.api.pipeline import cascade
from server.engine_client.link import Result
from server.errors import DeadlineExceeded, EngineLost, InferenceFailed, Overloaded
from server.ipc.messages import Failure, Outcome
from server.metrics.api import CascadeResult
from tests.server.api.pipeline.fakes import request_of
from tests.server.api.pipeline.image_pipeline import (
    FORM,
    PARAMS,
    PIXELS,
    Pipeline,
    batch_of,
    form,
    result_of,
)
from tests.server.wire import SNEAKER
from tome_core.schedule import Schedule

R0 = Schedule.constant(0)
R1 = Schedule.constant(1)
CONFIDENCE = Confidence({R1: 0.5}, R0)


def params(**changes: Any) -> Params:
    return replace(PARAMS, confidence=CONFIDENCE, **changes)


def result(
    scores: tuple[float, ...],
    classes: tuple[int, ...] = (0, 1),
    schedule: Schedule = R1,
    seconds: float = 0.25,
    images: int = 4,
) -> Result:
    outcome = Outcome(
        1,
        schedule=schedule,
        scores=scores,
        classes=classes,
        tokens_out=5 - schedule.counts[0],
        queue_seconds=0.5,
    )
    return batch_of(outcome, images, seconds)


CERTAIN = result((0.9, 0.1))
UNCERTAIN = result((0.6, 0.4))
SECOND = result((0.7, 0.3), (2, 0), R0, seconds=1.0, images=2)


def infer(pipeline: Pipeline, **changes: Any) -> CascadeAnswer:
    request = replace(pipeline.request, params=params(**changes))
    found = pipeline.run(pipeline.inference.infer(request_of([SNEAKER]), request))
    return CascadeAnswer.model_validate(found)


def counts(pipeline: Pipeline) -> dict[str, float]:
    """How many images ended in which way."""
    found = {}
    for name in CascadeResult:
        labels = {"model": "tiny", "result": name}
        value = pipeline.metrics.registry.get_sample_value("tome_cascade_images_total", labels)
        if value:
            found[str(name)] = value
    assert found == pipeline.context.endings
    return found


def test_a_certain_image_runs_once() -> None:
    pipeline = Pipeline([CERTAIN])
    answer = infer(pipeline)
    assert [(each.r, each.forward_ms) for each in answer.passes] == [("1", 250.0)]
    assert answer.confident
    assert (answer.r, answer.batch_size) == ("1", 4)
    assert [prediction.label for prediction in answer.predictions] == ["cat"]
    (run,) = pipeline.router.runs
    assert (run.top_k, run.keep_slot, run.is_second) == (2, True, False)
    assert counts(pipeline) == {"certain": 1}


def test_an_uncertain_image_runs_again_from_its_slot() -> None:
    pipeline = Pipeline([UNCERTAIN, SECOND])
    answer = infer(pipeline)
    assert [(each.r, each.forward_ms) for each in answer.passes] == [("1", 250.0), ("0", 1000.0)]
    assert answer.confident
    assert (answer.r, answer.r_requested, answer.tokens.output) == ("0", "1", 5)
    assert answer.batch_size == 2
    assert (answer.timing_ms.queue, answer.timing_ms.forward) == (1000.0, 1250.0)
    assert [prediction.label for prediction in answer.predictions] == ["fish"]
    first, second = pipeline.router.runs
    assert first.slot == second.slot
    assert (second.choices, second.keep_slot, second.is_second) == ((R0,), False, True)
    assert pipeline.context.r == "0"
    assert counts(pipeline) == {"again": 1}


def test_a_margin_of_a_class_alone_is_certain() -> None:
    assert infer(Pipeline([result((1.0,), (0,))])).confident


@pytest.mark.parametrize("failure", list(Failure))
def test_where_the_second_pass_fails_the_first_is_the_answer(failure: Failure) -> None:
    pipeline = Pipeline([UNCERTAIN, result_of(failure)])
    answer = infer(pipeline)
    assert not answer.confident
    assert (answer.r, len(answer.passes)) == ("1", 1)
    late = failure in (Failure.EXPIRED, Failure.REFUSED)
    assert counts(pipeline) == {"uncertain" if late else "failed": 1}


def test_an_engine_that_is_lost_leaves_the_first_answer() -> None:
    pipeline = Pipeline([UNCERTAIN, EngineLost("lost", retry_after=1)])
    assert not infer(pipeline).confident
    assert counts(pipeline) == {"failed": 1}


def test_a_first_pass_that_fails_is_an_error() -> None:
    with pytest.raises(InferenceFailed):
        infer(Pipeline([result_of(Failure.FAILED)]))


def test_a_second_pass_that_would_be_late_is_not_tried() -> None:
    pipeline = Pipeline([UNCERTAIN, SECOND])
    deadline = time.monotonic() + 30

    async def main() -> Any:
        request = replace(pipeline.request, params=params(deadline=deadline))
        answering = asyncio.ensure_future(pipeline.inference.infer(request_of([SNEAKER]), request))
        while not pipeline.router.runs:
            await asyncio.sleep(0)
        pipeline.router.needed_seconds = 60.0  # the queue has grown
        return await answering

    answer = CascadeAnswer.model_validate(pipeline.run(main()))
    assert not answer.confident
    assert len(pipeline.router.runs) == 1
    assert counts(pipeline) == {"uncertain": 1}


def test_a_second_pass_that_is_late_leaves_the_first_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is tried, because the forecast is wrong, when it is too late already."""
    monkeypatch.setattr(cascade, "ANSWER_SECONDS", 3600.0)
    pipeline = Pipeline([UNCERTAIN])  # the result of the second never comes
    pipeline.router.needed_seconds = -7200.0
    answer = infer(pipeline, deadline=time.monotonic() + 60)
    assert not answer.confident
    assert [future.cancelled() for future in pipeline.router.futures] == [False, True]
    assert counts(pipeline) == {"uncertain": 1}


def test_a_first_pass_that_is_late_is_an_error() -> None:
    with pytest.raises(DeadlineExceeded):
        infer(Pipeline([]), deadline=time.monotonic() + 0.05)


def test_each_image_of_a_form_decides_for_itself() -> None:
    pipeline = Pipeline([UNCERTAIN, CERTAIN, SECOND])
    request = replace(pipeline.request, params=params())
    chunks = form(SNEAKER, b"hello", SNEAKER)
    results = pipeline.run(pipeline.inference.infer(request_of(chunks, FORM), request))
    first, problem, last = results
    assert isinstance(problem, Problem)
    assert [len(each["passes"]) for each in (first, last)] == [2, 1]
    assert counts(pipeline) == {"again": 1, "certain": 1}


def test_pixels_are_run_again_too() -> None:
    pipeline = Pipeline([UNCERTAIN, CERTAIN, SECOND])
    answers = pipeline.infer_pixels(PIXELS[:2], params())
    assert [len(answer["passes"]) for answer in answers] == [2, 1]


def test_admission_expects_the_share_of_second_passes_that_were_observed() -> None:
    pipeline = Pipeline([UNCERTAIN, SECOND] * 50)
    for _ in range(50):
        infer(pipeline)
    first, last = pipeline.router.runs[0], pipeline.router.runs[-2]
    assert first.second is not None
    assert last.second is not None
    assert first.second.schedule == R0
    assert first.second.shares[0] < 0.5 < last.second.shares[0]


def test_images_that_could_not_run_twice_do_not_count() -> None:
    exact = result((0.6, 0.4), schedule=R0)
    pipeline = Pipeline([exact] * 50)
    for _ in range(50):
        assert infer(pipeline).confident
    first, last = pipeline.router.runs[0], pipeline.router.runs[-1]
    assert first.second == last.second


def test_without_room_it_is_refused_as_any_other() -> None:
    with pytest.raises(Overloaded):
        infer(Pipeline([CERTAIN], slots=0))

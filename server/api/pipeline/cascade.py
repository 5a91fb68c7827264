"""The cascade: an image that merging leaves uncertain runs again with less merging.

Most images keep their class under strong merging, and the margin between the two best probabilities
tells which may not. Only these pay for a second pass, from the slot in which they are already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from typing import Any

from server.api.contract.confidence import Confidence
from server.api.contract.params import Params
from server.api.pipeline.image_responses import Passes
from server.api.pipeline.inference_request import InferenceRequest
from server.engine_client.link import Result
from server.engine_client.routing import Lease, Router
from server.errors import RequestError
from server.ipc.messages import Failure, SecondPass
from server.metrics.api import CascadeResult, Metrics
from tome_core.schedule import Schedule

# The first answer must leave before the deadline that the second pass would miss, also where the
# event loop is busy.
ANSWER_SECONDS = 0.03
# Of the engine: the deadline has passed, or would pass before the image has run.
_TOO_LATE = (Failure.EXPIRED, Failure.REFUSED)


def expected_second_pass(
    router: Router, params: Params, confidence: Confidence
) -> SecondPass | None:
    """Return the second pass that the images of a request may take; None if they take none."""
    if not confidence.margins:
        return None
    shares = [
        router.second_passes.share(_key(params, confidence, choice))
        if choice in confidence.margins
        else 0.0
        for choice in params.choices
    ]
    return SecondPass(confidence.schedule, tuple(shares))


def _key(params: Params, confidence: Confidence, first: Schedule) -> Hashable:
    """Return what images have in common of which about the same share is uncertain."""
    margin = confidence.margins[first]
    return params.model.name, params.label_set_name, first, margin, confidence.schedule


class Cascade:
    """Runs images a second time that need it."""

    def __init__(self, router: Router, metrics: Metrics) -> None:
        self._router = router
        self._metrics = metrics

    async def complete(
        self, first: Result, lease: Lease, request: InferenceRequest[Any], confidence: Confidence
    ) -> Passes:
        """Return the passes of an image after its ``first`` one, whose slot ``lease`` kept.

        Where the second one fails, or would be too late, the first one is the answer. Metrics, the
        access log and a span say so.
        """
        params = request.params
        outcome = first.outcome
        assert outcome.schedule is not None
        certain = confidence.is_certain(outcome.schedule, outcome.scores)
        if outcome.schedule in confidence.margins:
            key = _key(params, confidence, outcome.schedule)
            self._router.second_passes.observe(key, not certain)
        results = [first]
        ended = CascadeResult.CERTAIN
        if not certain:
            second = await self._run_again(lease, request, confidence)
            if isinstance(second, Result):
                results.append(second)
                ended = CascadeResult.AGAIN
            else:
                ended = second
        self._metrics.observe_cascade(params.model.name, ended)
        request.context.count_ending(ended)
        confident = ended in (CascadeResult.CERTAIN, CascadeResult.AGAIN)
        return Passes(tuple(results), confident=confident)

    async def _run_again(
        self, lease: Lease, request: InferenceRequest[Any], confidence: Confidence
    ) -> Result | CascadeResult:
        """Return the result of a second pass, or why there is none."""
        started = time.monotonic()
        second = await self._second_result(lease, request, confidence)
        if isinstance(second, Result):
            request.context.record_run(started, second)
        else:
            request.context.record_missing_pass(started, confidence.schedule, second)
        return second

    async def _second_result(
        self, lease: Lease, request: InferenceRequest[Any], confidence: Confidence
    ) -> Result | CascadeResult:
        params = request.params
        choices = (confidence.schedule,)
        if params.deadline is not None:
            work = self._router.estimate_work(
                params.model.name, choices, params.deadline, generation=params.model.generation
            )
            needed = self._router.seconds_to_complete(work) + ANSWER_SECONDS
            if time.monotonic() + needed > params.deadline:
                return CascadeResult.UNCERTAIN
        latest = None if params.deadline is None else params.deadline - ANSWER_SECONDS
        try:
            async with asyncio.timeout_at(latest):
                result = await lease.submit(
                    params.model.name,
                    choices,
                    params.answer_top_k,
                    latest,
                    request.response_kind.output,
                    request_id=request.context.id,
                    is_second=True,
                    label_set=params.label_set_name,
                )
        except TimeoutError:
            return CascadeResult.UNCERTAIN
        except RequestError:
            return CascadeResult.FAILED  # no engine is left, or the one that had it was lost
        failure = result.outcome.failure
        if failure is None:
            return result
        return CascadeResult.UNCERTAIN if failure in _TOO_LATE else CascadeResult.FAILED

"""An image's pipeline with a router that has no engines, and what tests ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from server.api.contract.params import Params
from server.api.contract.schemas import Answer
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import Admission, BodyLimits
from server.api.pipeline.body import ParsedRequest
from server.api.pipeline.image import ImagePath
from server.api.pipeline.inference import InferencePipeline
from server.api.pipeline.inference_request import InferenceRequest
from server.api.pipeline.response_kinds import CLASSES
from server.api.pipeline.threads import Threads
from server.engine_client.link import Result
from server.errors import EngineLost
from server.imaging.decode import decode
from server.ipc.messages import BatchDone, Failure, Outcome
from server.media.modality import Modality
from server.metrics.api import Metrics
from tests.server.api.pipeline.fakes import MODEL, FakeRouter, request_of
from tome_core.schedule import Schedule

PARAMS = Params(
    model=MODEL,
    choices=(Schedule.constant(1),),
    requested_r="1",
    top_k=1,
    deadline=None,
)
FORM = {"content-type": "multipart/form-data; boundary=XX"}
PIXELS = [np.full(MODEL.transform.size, value, np.uint8) for value in range(3)]


def result_of(failure: Failure | None = None, class_index: int = 0) -> Result:
    if failure:
        return batch_of(Outcome(1, failure))
    schedule = Schedule.constant(1)
    return batch_of(Outcome(1, schedule=schedule, scores=(0.5,), classes=(class_index,)))


def batch_of(outcome: Outcome, images: int = 1, seconds: float = 0.0) -> Result:
    """The result of a job that ran among so many ``images``."""
    return Result(outcome, BatchDone("tiny", (outcome,), images, forward_seconds=seconds))


def form(*files: bytes) -> list[bytes]:
    header = b'--XX\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    return [header + content + b"\r\n" for content in files] + [b"--XX--\r\n"]


def label_of(answer: dict[str, Any]) -> str:
    """The best label of a valid answer."""
    return Answer.model_validate(answer).predictions[0].label


def parse_as(params: Params, pixels: list[np.ndarray]) -> Callable[[bytes], ParsedRequest]:
    """A parser that finds ``pixels`` in any body."""

    def parse(body: bytes) -> ParsedRequest:
        return ParsedRequest(params, list(pixels))

    return parse


class NoMediaPath:
    async def infer(self, media: Any, lease: Any, request: Any) -> Any:
        raise AssertionError("an image is no sound or video")


class Pipeline:
    """An `InferencePipeline` with the parts that a test looks at."""

    def __init__(self, results: Sequence[Result | EngineLost | None], slots: int = 4) -> None:
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
            NoMediaPath(),  # type: ignore[arg-type]
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
        request = request_of([b"pixels"])
        parse = parse_as(params, pixels)
        work = self.inference.infer_parsed(
            request, MODEL.modality, parse, lambda _: CLASSES, self.context
        )
        _, answers = self.run(work)
        return answers

    def infer_together(self, chunks: list[bytes]) -> Any:
        request = replace(self.request, fail_together=True)
        return self.run(self.inference.infer(request_of(chunks, FORM), request))

"""The path of one image through the API process after its body: decode, submit, response.

How its stages are recorded serves sounds and videos as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from server.api.contract.failures import error_of
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import BufferedInput
from server.api.pipeline.cascade import Cascade, expected_second_pass
from server.api.pipeline.image_responses import FinishedImage, Passes
from server.api.pipeline.inference_request import InferenceRequest
from server.api.pipeline.modalities import name_modality
from server.api.pipeline.rounds import Round
from server.api.pipeline.threads import Threads
from server.api.pipeline.together import run_together
from server.engine_client.link import Result
from server.engine_client.routing import Lease, Router
from server.errors import RequestError, UnsupportedFormat
from server.imaging.small import MAX_INPUT_PIXELS, MAX_SMALL_BYTES, is_small
from server.ipc.messages import ModelInfo
from server.media.transforms import ImageTransform
from server.metrics.api import Metrics

T = TypeVar("T")


class Run(NamedTuple):
    """An image that is submitted.

    Attributes:
        submitted: when, in ``time.monotonic()`` seconds.
        decode_ms: milliseconds that its decoding took.
        result: raises `EngineLost`.
    """

    submitted: float
    decode_ms: float
    result: asyncio.Future[Result]

    def abandon(self) -> None:
        """Cancel the image unless it is done; its result or its error is not wanted."""
        if not self.result.cancel() and not self.result.cancelled():
            self.result.exception()  # else asyncio logs that nobody has seen it


class ImagePath:
    """Decodes an image, runs it, and builds its response.

    Args:
        decode: returns the pixels of an encoded image for a model, as
            `server.imaging.decode.decode` does, and raises what that raises.
        threads: for decoding and drawing.
    """

    def __init__(
        self,
        router: Router,
        metrics: Metrics,
        decode: Callable[[bytes, ImageTransform], npt.NDArray[np.uint8]],
        threads: Threads,
    ) -> None:
        self._router = router
        self._metrics = metrics
        self._decode_image = decode
        self._threads = threads
        self._cascade = Cascade(router, metrics)

    async def infer(self, image: BufferedInput, lease: Lease, request: InferenceRequest[T]) -> T:
        """Decode one image into its slot, run it, and build its response.

        Raises:
            RequestError: it cannot be decoded, or does not run.
        """
        pixels, decode_ms = await self._fill(lease, image, request)
        confidence = request.params.confidence
        run = self._submit(lease, request, decode_ms, keep_slot=confidence is not None)
        # Only a picture needs the pixels again; other pixels are freed while their image waits.
        picture_pixels = pixels if request.response_kind.is_picture else None
        del pixels
        result = await run.result
        self._check(result)
        request.context.record_run(run.submitted, result)
        passes = Passes((result,))
        if confidence is not None:
            passes = await self._cascade.complete(result, lease, request, confidence)
            lease.release()  # other images of the request may take longer
        finished = self._finish(run, passes, request, picture_pixels)
        response = await build_response(
            lambda: request.response_kind.build(finished), request, self._threads, self._metrics
        )
        self._count(finished)
        return response

    async def infer_together(self, images: Round, request: InferenceRequest[T]) -> list[T]:
        """Return the responses for several images.

        As soon as enough for the largest batch are decoded, they are submitted in one go, so that
        they run while the others are decoded; the rest are when all are. So an idle engine runs
        images that fit in one batch as one, and not the first of them alone.

        Raises:
            RequestError: that of the first one that fails, with its ``index``. The others are
                cancelled then.
        """
        runs: dict[int, Run] = {}  # by position
        try:
            await self._run_all(images, request, runs)
            await self._wait_for(runs, images)
            return [self._respond(runs[position], request) for position in range(len(runs))]
        finally:
            for run in runs.values():
                run.abandon()

    async def _run_all(
        self, images: Round, request: InferenceRequest[Any], runs: dict[int, Run]
    ) -> None:
        """Decode each image into its slot, and submit it: into ``runs``, by its position."""
        decoded: dict[int, float] = {}  # milliseconds, by position; not submitted yet

        def submit_decoded() -> None:
            while decoded:
                position = next(iter(decoded))
                runs[position] = self._submit(
                    images.leases[position],
                    request,
                    decoded.pop(position),
                    images.keeps_slot(position),
                )

        async def decode(position: int) -> None:
            try:
                _, decoded[position] = await self._fill(
                    images.leases[position], images.inputs[position], request
                )
            except RequestError as error:
                images.name_input(error, position)
                raise
            if len(decoded) >= self._router.max_batch:
                submit_decoded()

        positions = range(len(images.inputs))
        if all(isinstance(image.content, np.ndarray) for image in images.inputs):
            # A task for each would cost more than the rest of this.
            for position in positions:
                await decode(position)
        else:
            await run_together(map(decode, positions))
        submit_decoded()

    async def _wait_for(self, runs: Mapping[int, Run], images: Round) -> None:
        """Wait until all ``runs`` are done, or one has failed, and raise its `RequestError`."""
        pending = {run.result for run in runs.values()}
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for position in range(len(runs)):
                result = runs[position].result
                if result not in done:
                    continue
                try:
                    self._check(result.result())
                except RequestError as error:
                    images.name_input(error, position)
                    raise

    def _respond(self, run: Run, request: InferenceRequest[T]) -> T:
        """Return the response of an image that has run."""
        result = run.result.result()
        request.context.record_run(run.submitted, result)
        finished = self._finish(run, Passes((result,)), request)
        response = request.response_kind.build(finished)
        self._count(finished)
        return response

    async def _fill(
        self, lease: Lease, image: BufferedInput, request: InferenceRequest[Any]
    ) -> tuple[npt.NDArray[Any], float]:
        """Decode an image into the slot of ``lease``; return its pixels and the milliseconds."""
        started = time.monotonic()
        try:
            pixels = await self._decode(image, request.params.model)
            # Tens of microseconds. A thread must not write into the slot: it could still do so when
            # the client has disconnected and another request holds the slot.
            lease.write(pixels)
        finally:
            image.release()
        return pixels, end_stage(
            self._metrics, request.context, "decode", started, next_stage="queue"
        )

    def _submit(
        self,
        lease: Lease,
        request: InferenceRequest[Any],
        decode_ms: float,
        keep_slot: bool = False,
    ) -> Run:
        """Submit the image in the slot of ``lease``, whose decoding took ``decode_ms``."""
        params = request.params
        context = request.context
        second = None
        if params.confidence is not None:
            second = expected_second_pass(self._router, params, params.confidence)
        submitted = time.monotonic()
        result = lease.submit(
            params.model.name,
            params.choices,
            params.answer_top_k,
            params.deadline,
            request.response_kind.output,
            request_id=context.id,
            keep_slot=keep_slot,
            second=second,
            label_set=params.label_set_name,
        )
        return Run(submitted, decode_ms, result)

    def _check(self, result: Result) -> None:
        """Raise the `RequestError` of an image that did not run."""
        outcome = result.outcome
        if outcome.failure or outcome.schedule is None:
            raise error_of(outcome.failure, self._router.retry_after)

    def _finish(
        self,
        run: Run,
        passes: Passes,
        request: InferenceRequest[Any],
        picture_pixels: npt.NDArray[np.uint8] | None = None,
    ) -> FinishedImage:
        """Record the stages of an image that ran; return what its response is built from."""
        params = request.params
        context = request.context
        context.r = str(passes.last.outcome.schedule)
        timing = {
            "decode": run.decode_ms,
            "queue": record_stage(context, "queue", passes.queue_seconds),
            "forward": record_stage(context, "forward", passes.forward_seconds),
        }
        return FinishedImage(params, passes, timing, picture_pixels)

    def _count(self, image: FinishedImage) -> None:
        """Count an image whose response is built."""
        schedule = image.outcome.schedule
        assert schedule is not None
        self._metrics.observe_image(image.params.model.name, schedule)

    async def _decode(self, image: BufferedInput, model: ModelInfo) -> npt.NDArray[Any]:
        if isinstance(image.content, np.ndarray):
            return image.content

        # The content is taken when the thread begins. A call that waits in the queue holds none:
        # after a cancellation, which releases the image, it stays there until a thread takes it.
        def decode() -> npt.NDArray[np.uint8]:
            body = image.encoded_bytes()
            try:
                return self._decode_image(body, cast("ImageTransform", model.transform))
            except UnsupportedFormat as error:
                raise name_modality(error, body, model.modality, model.name) from None

        content = image.content
        if len(content) <= MAX_SMALL_BYTES and isinstance(content, bytes):
            height, width = model.transform.size[1:]
            if height * width <= MAX_INPUT_PIXELS and is_small(content):
                return decode()  # in less time than the way to a thread and back takes
        del content
        return await self._threads.run(decode)


async def build_response(
    build: Callable[[], T], request: InferenceRequest[T], threads: Threads, metrics: Metrics
) -> T:
    """Return the response that ``build`` makes; a picture takes a thread, and is a stage."""
    if not request.response_kind.is_picture:
        return build()
    request.context.stage = "picture"
    started = time.monotonic()
    response = await threads.run(build)
    end_stage(metrics, request.context, "picture", started)
    return response


def end_stage(
    metrics: Metrics,
    context: RequestContext,
    stage: str,
    started: float,
    next_stage: str | None = None,
) -> float:
    """Record the time of a stage that began at ``started``, and return its milliseconds.

    Args:
        next_stage: the stage that begins now; None after the last one.
    """
    seconds = time.monotonic() - started
    metrics.stage_duration.labels(stage).observe(seconds)
    if context.spans is not None:
        context.spans.record(stage, started, seconds)
    if next_stage is not None:
        context.stage = next_stage
    return record_stage(context, stage, seconds)


def record_stage(context: RequestContext, stage: str, seconds: float) -> float:
    """Record the time of a finished stage. Return it in milliseconds, rounded for display."""
    milliseconds = round(seconds * 1000, 3)
    context.stages[stage] = max(milliseconds, context.stages.get(stage, 0.0))
    return milliseconds

"""The path of one image through the API process: admission, body, decode, submit, response.

The public methods of `InferencePipeline` differ in where the parameters come from and in how
several images of one request fail. All of them end in `InferencePipeline._process`, which takes one
image to its response.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from server.api.contract.params import Params
from server.api.contract.problem_details import problem_of
from server.api.contract.schemas import Problem, Timing
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import Admission, Reservation
from server.api.pipeline.body_reader import BodyReader
from server.api.pipeline.cancellation import cancel_at, cancel_on_disconnect
from server.api.pipeline.decode_pool import DecodePool
from server.api.pipeline.inputs import BufferedInput, ParsedRequest, RequestImages
from server.api.pipeline.response_kinds import FinishedImage, ResponseKind
from server.engine_client.process import Result
from server.engine_client.routing import Router
from server.engine_client.slots import Lease
from server.errors import DeadlineExceeded, InferenceFailed, Overloaded, RequestError
from server.ipc.messages import ModelInfo
from server.latency.queueing import WorkEstimate
from server.metrics import Metrics
from tome_core.schedule import Schedule

T = TypeVar("T")
Parsed = TypeVar("Parsed", bound=ParsedRequest)

# Device memory that other batches hold is free again within seconds.
_OUT_OF_MEMORY_RETRY_SECONDS = 5


class InferencePipeline:
    """Takes a request from its admission to the content of its response."""

    def __init__(
        self,
        router: Router,
        admission: Admission,
        decode_pool: DecodePool,
        metrics: Metrics,
    ) -> None:
        self._router = router
        self._admission = admission
        self._decode_pool = decode_pool
        self._metrics = metrics
        self._body_reader = BodyReader(admission, decode_pool)

    async def infer(
        self,
        request: Request,
        params: Params,
        context: RequestContext,
        response_kind: ResponseKind[T],
    ) -> T | list[T | Problem]:
        """Return one response for one image, or one result for each of several.

        One image is the body, or ``image`` of a JSON body. Several are the files of a multipart
        body, or ``images`` of a JSON body; the result of one that fails is its problem. A picture
        is always one response.

        Raises:
            RequestError: the request fails.
            ClientDisconnect: the client has disconnected; the work for it is cancelled.
        """
        estimate = self._estimate_work(params)
        with (
            self._admission.admit(request, estimate, params.deadline) as lease,
            self._admission.reserve() as reservation,
        ):
            async with cancel_at(params.deadline):
                read = await self._read_images(request, context, reservation)
                if read.as_list and not response_kind.is_picture:
                    results = self._process_each(read.images, lease, params, context, response_kind)
                    return await cancel_on_disconnect(request.receive, results)
                image = read.single()
                response = self._process(image, lease, params, context, response_kind)
                return await cancel_on_disconnect(request.receive, response)

    async def infer_all(
        self,
        request: Request,
        params: Params,
        context: RequestContext,
        response_kind: ResponseKind[T],
    ) -> list[T]:
        """Return a response for each image, in the order in which the body has them.

        Raises:
            As `infer`. The error of one image is the error of the request.
        """
        estimate = self._estimate_work(params)
        with (
            self._admission.admit(request, estimate, params.deadline) as lease,
            self._admission.reserve() as reservation,
        ):
            async with cancel_at(params.deadline):
                read = await self._read_images(request, context, reservation)
                responses = self._process_all(read.images, lease, params, context, response_kind)
                return await cancel_on_disconnect(request.receive, responses)

    async def infer_parsed(
        self,
        request: Request,
        parse: Callable[[bytes], Parsed],
        context: RequestContext,
        response_kind: ResponseKind[T],
    ) -> tuple[Parsed, list[T]]:
        """Parse a body that holds the parameters too, and return a response for each of its images.

        Args:
            parse: parses the body, in a decode thread.

        Raises:
            As `infer_all`.
        """
        with (
            self._admission.admit(request, estimate=None, deadline=None) as lease,
            self._admission.reserve() as reservation,
        ):
            body = await self._body_reader.read(request, reservation)
            self._end_body_stage(context)
            responses = self._parse_and_process(body, parse, lease, context, response_kind)
            return await cancel_on_disconnect(request.receive, responses)

    async def _read_images(
        self, request: Request, context: RequestContext, reservation: Reservation
    ) -> RequestImages:
        images = await self._body_reader.read_images(request, reservation)
        self._end_body_stage(context)
        return images

    async def _parse_and_process(
        self,
        body: BufferedInput,
        parse: Callable[[bytes], Parsed],
        lease: Lease,
        context: RequestContext,
        response_kind: ResponseKind[T],
    ) -> tuple[Parsed, list[T]]:
        def parse_body() -> Parsed:
            return parse(body.encoded_bytes())

        try:
            parsed = await self._decode_pool.run(parse_body)
        finally:
            body.clear()
        params = parsed.params
        context.model = params.model.name
        context.r = params.text
        self._admission.check_deadline(self._estimate_work(params), params.deadline)
        async with cancel_at(params.deadline):
            images = parsed.take_images(body)
            return parsed, await self._process_all(images, lease, params, context, response_kind)

    # Several images of one request: process them at the same time.

    async def _process_each(
        self,
        images: list[BufferedInput],
        first_lease: Lease,
        params: Params,
        context: RequestContext,
        response_kind: ResponseKind[T],
    ) -> list[T | Problem]:
        """Return the response or the problem of each image.

        The first image uses the slot that the request holds. Each other image leases one, and fails
        alone if none is free.
        """

        async def process(image: BufferedInput, lease: Lease | None) -> T | Problem:
            try:
                if lease is not None:
                    return await self._process(image, lease, params, context, response_kind)
                with self._router.lease(self._estimate_work(params)) as own_lease:
                    return await self._process(image, own_lease, params, context, response_kind)
            except RequestError as error:
                self._metrics.observe_error(error)
                return problem_of(error)

        # A group waits for all of its tasks whatever happens. No task may still run once the
        # request's slot is given back.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(process(images[0], first_lease))]
            for image in images[1:]:
                tasks.append(group.create_task(process(image, None)))
        return [task.result() for task in tasks]

    async def _process_all(
        self,
        images: list[BufferedInput],
        first_lease: Lease,
        params: Params,
        context: RequestContext,
        response_kind: ResponseKind[T],
    ) -> list[T]:
        """Return the response of each image.

        All images get their slots before the work on the first one begins.

        Raises:
            RequestError: that of the first image that fails, with its ``index``.
        """

        async def process(index: int, image: BufferedInput, lease: Lease) -> T:
            try:
                return await self._process(image, lease, params, context, response_kind)
            except RequestError as error:
                if len(images) > 1:
                    error.extensions["index"] = index
                raise

        with contextlib.ExitStack() as stack:
            leases = [first_lease]
            for _ in images[1:]:
                lease = self._router.lease(self._estimate_work(params))
                leases.append(stack.enter_context(lease))
            tasks = []
            try:
                async with asyncio.TaskGroup() as group:
                    for index, image in enumerate(images):
                        tasks.append(group.create_task(process(index, image, leases[index])))
            except BaseExceptionGroup as group_error:
                # The first error comes first; it made the group cancel all other tasks.
                raise group_error.exceptions[0] from None
            return [task.result() for task in tasks]

    # One image: decode, submit, response.

    async def _process(
        self,
        image: BufferedInput,
        lease: Lease,
        params: Params,
        context: RequestContext,
        response_kind: ResponseKind[T],
    ) -> T:
        """Decode one image into its slot, run it, and build its response."""
        model = params.model
        started = time.monotonic()
        try:
            pixels = await self._decode(image, model)
            lease.write(pixels)
        finally:
            image.release()
        decode_ms = self._end_stage(context, "decode", started, next_stage="queue")
        # Only a picture needs the pixels again; other pixels are freed while their image waits.
        picture_pixels = pixels if response_kind.is_picture else None
        del pixels

        submitted = time.monotonic()
        result = await lease.run(
            model.name,
            params.choices,
            params.top_k,
            params.deadline,
            params.output_kind,
            request_id=context.id,
        )
        schedule = self._require_success(result)
        context.r = str(schedule)
        context.record_run(
            submitted,
            result.outcome.queue_seconds,
            result.batch.forward_seconds,
            result.batch.images,
        )
        timing = Timing(
            decode=decode_ms,
            queue=context.record_stage("queue", result.outcome.queue_seconds),
            forward=context.record_stage("forward", result.batch.forward_seconds),
        )
        finished = FinishedImage(
            params, result.outcome, timing, result.batch.images, picture_pixels
        )
        response = await self._build_response(finished, context, response_kind)
        self._metrics.observe_image(model.name, schedule)
        return response

    async def _decode(self, image: BufferedInput, model: ModelInfo) -> npt.NDArray[Any]:
        if isinstance(image.content, np.ndarray):
            return image.content
        return await self._decode_pool.decode(image.encoded_bytes, model.transform)

    def _require_success(self, result: Result) -> Schedule:
        """Return the schedule of an image that ran, or raise the error of one that did not.

        Raises:
            DeadlineExceeded, Overloaded, InferenceFailed: the image has no output.
        """
        outcome = result.outcome
        if outcome.failure == "expired":
            raise DeadlineExceeded("the deadline passed before the image ran")
        if outcome.failure == "refused":
            raise Overloaded(
                "the response would not be ready before the deadline",
                retry_after=self._router.retry_after(),
                reason="deadline",
            )
        if outcome.failure == "out-of-memory":
            raise Overloaded(
                "the device ran out of memory for this image",
                retry_after=_OUT_OF_MEMORY_RETRY_SECONDS,
                reason="out-of-memory",
            )
        if outcome.failure or outcome.schedule is None:
            raise InferenceFailed("the model gave no valid numbers for this image")
        return outcome.schedule

    async def _build_response(
        self,
        image: FinishedImage,
        context: RequestContext,
        response_kind: ResponseKind[T],
    ) -> T:
        if not response_kind.is_picture:
            return response_kind.build(image)

        def build() -> T:
            return response_kind.build(image)

        context.stage = "picture"
        started = time.monotonic()
        response = await self._decode_pool.run(build)
        self._end_stage(context, "picture", started)
        return response

    # What several steps need.

    def _estimate_work(self, params: Params) -> WorkEstimate:
        return self._router.estimate_work(params.model.name, params.choices, params.deadline)

    def _end_body_stage(self, context: RequestContext) -> None:
        self._end_stage(context, "body", context.started, next_stage="decode")

    def _end_stage(
        self,
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
        self._metrics.stage_duration.labels(stage).observe(seconds)
        context.record_span(stage, started, seconds)
        if next_stage is not None:
            context.stage = next_stage
        return context.record_stage(stage, seconds)

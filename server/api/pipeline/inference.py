"""The path of a request through the API process: admission, body, and then that of its images.

The path of one image goes on in `server.api.pipeline.image`, that of a sound or a video in
`server.api.pipeline.media`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar, cast

import numpy as np
from starlette.requests import ClientDisconnect, Request

from server.api.contract.asgi_extensions import CLIENT_CONNECTION, ClientConnection
from server.api.contract.params import Params
from server.api.contract.problem_details import problem_of
from server.api.contract.schemas import Problem
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import Admission, BufferedInput, Reservation
from server.api.pipeline.body import ParsedRequest, RequestImages, read_files
from server.api.pipeline.cancellation import cancel_at, race_with_disconnect
from server.api.pipeline.cascade import expected_second_pass
from server.api.pipeline.image import ImagePath, end_stage
from server.api.pipeline.inference_request import InferenceRequest
from server.api.pipeline.json_images import OBJECT_START, check_json_type, parse_json_images
from server.api.pipeline.media import MediaPath
from server.api.pipeline.response_kinds import ResponseKind
from server.api.pipeline.rounds import Round
from server.api.pipeline.threads import Threads
from server.api.pipeline.together import run_together
from server.engine_client.routing import Lease, Router
from server.errors import BadImage, RequestError, TooLarge
from server.ipc.messages import ModelInfo
from server.latency.queueing import WorkEstimate
from server.media.modality import Modality
from server.metrics.api import Metrics

T = TypeVar("T")
Parsed = TypeVar("Parsed", bound=ParsedRequest)

_NO_DEADLINE = contextlib.nullcontext()


class InferencePipeline:
    """Takes a request from its admission to the content of its response.

    Args:
        threads: for work that would block the event loop: decoding, parsing and drawing. They take
            calls first come, first served. Each call belongs to a slot, so the number of slots
            bounds their queue.
    """

    def __init__(
        self,
        router: Router,
        admission: Admission,
        metrics: Metrics,
        threads: Threads,
        image_path: ImagePath,
        media_path: MediaPath,
    ) -> None:
        self._router = router
        self._admission = admission
        self._metrics = metrics
        self._threads = threads
        self._image_path = image_path
        self._media_path = media_path

    def models(self) -> Mapping[str, ModelInfo]:
        """Return the served models by name. Raises `Overloaded` until they are loaded."""
        if not self._router.engines.models:
            self._admission.check_open()
        return self._router.engines.models

    def widest_modality(self) -> Modality:
        """Return the modality of the served models whose limit on a body is the largest.

        For a body that itself names its model. Raises `Overloaded` until they are loaded.
        """
        modalities = {model.modality for model in self.models().values()}
        return max(modalities, key=self._admission.max_bytes)

    async def infer(
        self, http_request: Request, request: InferenceRequest[T]
    ) -> T | list[T | Problem]:
        """Return one response for one image, or one result for each of several, in their order.

        One image is the body, or ``image`` of a JSON body. Several are the files of a multipart
        body, or ``images`` of a JSON body. A picture is always one response.

        Raises:
            RequestError: the request fails.
            ClientDisconnect: the client has disconnected; the work for it is cancelled.
        """
        params = request.params
        modality = params.model.transform.modality
        with (
            self._admission.admit(
                http_request,
                modality,
                self._least_work(params),
                params.deadline,
                self._expected_work(params),
            ) as lease,
            self._admission.reserve(modality) as reservation,
        ):
            async with _until(params.deadline):
                received = await read_images(http_request, self._admission, reservation)
                responses = self._infer_received(received, lease, request)
                return await cancel_on_disconnect(http_request, responses)

    async def infer_parsed(
        self,
        http_request: Request,
        modality: Modality,
        parse: Callable[[bytes], Parsed],
        response_kind_of: Callable[[Parsed], ResponseKind[T]],
        context: RequestContext,
        generation: int | None = None,
    ) -> tuple[Parsed, list[T]]:
        """Parse a body that holds the parameters too, and return a response for each of its images.

        The error of one image is the error of the request.

        Args:
            modality: what the model takes, for the limits on the body; where the body names the
                model, see `widest_modality`.
            parse: parses the body, in a thread.
            response_kind_of: what a parsed request asks for.
            generation: of the models that ``parse`` knows; default: the one that serves.

        Raises:
            As `infer`.
        """
        with (
            self._admission.admit(
                http_request, modality, None, None, generation=generation
            ) as lease,
            self._admission.reserve(modality) as reservation,
        ):
            body = await self._admission.read_whole_body(http_request, reservation)
            end_stage(self._metrics, context, "body", context.started, next_stage="decode")
            responses = self._parse_and_infer(body, parse, lease, response_kind_of, context)
            return await cancel_on_disconnect(http_request, responses)

    async def _infer_received(
        self, received: RequestImages, first_lease: Lease, request: InferenceRequest[T]
    ) -> T | list[T | Problem]:
        images = received.images
        as_list = received.as_list
        if received.is_json:
            (body,) = images
            contents, as_list = await self._parse(body, parse_json_images)
            images = body.split(contents)
            contents.clear()
        context = request.context
        end_stage(self._metrics, context, "body", context.started, next_stage="decode")
        if as_list and not request.response_kind.is_picture:
            return await self._infer_images(images, first_lease, request)
        if len(images) > 1:
            raise BadImage(f"the body has {len(images)} files, but this route takes one")
        return await self._infer_one(images[0], first_lease, request)

    async def _parse_and_infer(
        self,
        body: BufferedInput,
        parse: Callable[[bytes], Parsed],
        lease: Lease,
        response_kind_of: Callable[[Parsed], ResponseKind[T]],
        context: RequestContext,
    ) -> tuple[Parsed, list[T]]:
        parsed = await self._parse(body, parse)
        params = parsed.params
        context.model = params.model.name
        context.r = params.text
        self._admission.check_size(body.size, params.model.modality)
        self._admission.check_deadline(
            self._least_work(params), params.deadline, len(parsed.images)
        )
        images = body.split(parsed.images)
        parsed.images.clear()
        request = InferenceRequest(params, response_kind_of(parsed), context, fail_together=True)
        async with _until(params.deadline):
            responses = await self._infer_images(images, lease, request)
        return parsed, cast("list[T]", responses)

    async def _parse(self, body: BufferedInput, parse: Callable[[bytes], T]) -> T:
        """Return what ``parse`` makes of ``body``, whose bytes then count for its images."""
        try:
            return await self._run_in_thread(lambda: parse(body.encoded_bytes()))
        finally:
            body.clear()

    async def _infer_images(
        self, images: list[BufferedInput], first_lease: Lease, request: InferenceRequest[T]
    ) -> list[T | Problem]:
        """Return the result of each image; they are processed at the same time.

        The first image uses the slot that the request holds. Each of the others gets its own, and
        fails alone if none is free; but see `_infer_together`.

        Raises:
            RequestError: that of the first image that fails, with its ``index``, if images fail
                together.
        """
        if request.fail_together:
            return [*await self._infer_together(images, first_lease, request)]

        async def infer(image: BufferedInput, lease: Lease | None) -> T | Problem:
            try:
                if lease is not None:
                    return await self._infer_one(image, lease, request)
                with self._lease(request) as own_lease:
                    return await self._infer_one(image, own_lease, request)
            except RequestError as error:
                self._metrics.observe_error(error)
                return problem_of(error)

        no_leases = [None] * (len(images) - 1)
        return await run_together(map(infer, images, [first_lease, *no_leases]))

    async def _infer_together(
        self, images: list[BufferedInput], first_lease: Lease, request: InferenceRequest[T]
    ) -> list[T]:
        """Return the responses for images that succeed together.

        The request takes slots besides its own only as far as they are free, without waiting, and
        runs the images in rounds. So every admitted request proceeds, however many they are.

        Raises:
            RequestError: that of the first image that fails, with its ``index``.
        """
        if request.params.confidence is not None:
            self._check_slots(len(images))
        responses: list[T] = []
        while len(responses) < len(images):
            start = len(responses)
            further = len(images) - start - 1
            if request.params.confidence is None:
                further = min(further, self._router.free_slots)
            with contextlib.ExitStack() as further_slots:
                leases = [first_lease]
                for _ in range(further):
                    leases.append(further_slots.enter_context(self._lease(request)))
                inputs = images[start : start + len(leases)]
                responses += await self._run_round(
                    Round(inputs, leases, start, len(images)), request
                )
        return responses

    def _check_slots(self, images: int) -> None:
        """Raise `TooLarge` if the process has fewer slots than a request has ``images``.

        Images that may run twice take no turns: after a second pass that failed, or that came too
        late, the engine may still read the slot.
        """
        slots = self._router.slot_count
        if images > slots:
            raise TooLarge(
                f"there are {images} images; with confidence a request may have {slots} here",
                limit=slots,
            )

    async def _run_round(self, images: Round, request: InferenceRequest[T]) -> list[T]:
        is_image = all(self._takes_path_of_images(each, request.params) for each in images.inputs)
        if is_image and request.params.confidence is None:
            return await self._image_path.infer_together(images, request)

        async def infer(position: int) -> T:
            keep_slot = images.keeps_slot(position)
            try:
                return await self._infer_one(
                    images.inputs[position], images.leases[position], request, keep_slot
                )
            except RequestError as error:
                images.name_input(error, position)
                raise

        return await run_together(map(infer, range(len(images.inputs))))

    async def _infer_one(
        self,
        content: BufferedInput,
        lease: Lease,
        request: InferenceRequest[T],
        keep_slot: bool = False,
    ) -> T:
        if self._takes_path_of_images(content, request.params):
            assert not keep_slot
            return await self._image_path.infer(content, lease, request)
        return await self._media_path.infer(content, lease, request, keep_slot)

    def _takes_path_of_images(self, content: BufferedInput, params: Params) -> bool:
        """Whether an input is an image, or needs no decoding."""
        is_image = params.model.transform.modality is Modality.IMAGE
        return is_image or isinstance(content.content, np.ndarray)

    async def _run_in_thread(self, function: Callable[[], T]) -> T:
        return await self._threads.run(function)

    def _lease(self, request: InferenceRequest[Any]) -> contextlib.AbstractContextManager[Lease]:
        params = request.params
        return self._router.lease(self._expected_work(params) or self._least_work(params))

    def _least_work(self, params: Params) -> WorkEstimate:
        return self._router.estimate_work(
            params.model.name,
            params.choices,
            params.deadline,
            generation=params.model.generation,
        )

    def _expected_work(self, params: Params) -> WorkEstimate | None:
        """Return the work of an image that may run twice; None if it does not."""
        if params.confidence is None:
            return None
        second = expected_second_pass(self._router, params, params.confidence)
        return self._router.estimate_work(
            params.model.name,
            params.choices,
            params.deadline,
            second,
            params.model.generation,
        )


async def read_images(
    request: Request, admission: Admission, reservation: Reservation
) -> RequestImages:
    """Return the image that is the body, or the images of a multipart body, or a JSON body.

    Raises:
        RequestError: the body is malformed, or has no image or too many.
        ClientDisconnect: the client has disconnected.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.lstrip().lower().startswith("multipart/"):
        return await read_files(request, content_type, admission, reservation)
    body = await admission.read_whole_body(request, reservation)
    is_json = OBJECT_START.match(body.encoded_bytes()) is not None
    if is_json:
        check_json_type(content_type)
    return RequestImages([body], as_list=False, is_json=is_json)


def _until(deadline: float | None) -> contextlib.AbstractAsyncContextManager[None]:
    """Cancel the block at ``deadline``, if there is one."""
    return _NO_DEADLINE if deadline is None else cancel_at(deadline)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, unless the client, whose body was read, disconnects first.

    Raises:
        ClientDisconnect: the client has disconnected; ``work`` is cancelled.
    """
    connection: ClientConnection | None = request.scope.get("extensions", {}).get(CLIENT_CONNECTION)
    if connection is None:
        return await race_with_disconnect(request.receive, work)
    if connection.disconnected:
        work.close()
        raise ClientDisconnect
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    connection.on_disconnect = task.cancel
    try:
        return await work
    except asyncio.CancelledError:
        if not connection.disconnected:
            raise  # another cancellation
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        connection.on_disconnect = None

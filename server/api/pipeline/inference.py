"""The way of an image, from top to bottom and whatever is wanted of it: admit, read, decode, submit, answer."""

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
from server.api.contract.problem_details import describe
from server.api.contract.schemas import Problem, Timing
from server.api.middleware.request_context import RequestContext
from server.api.pipeline.admission import Admission, Reservation
from server.api.pipeline.answers import Done, Kind
from server.api.pipeline.cancellation import until, while_connected
from server.api.pipeline.decode_pool import DecodePool
from server.api.pipeline.multipart import FileParts, is_multipart
from server.api.pipeline.uploads import Asked, Upload, the_only
from server.engine_client.lease import Lease
from server.engine_client.pool import EnginePool
from server.engine_client.process import Result
from server.errors import DeadlineExceeded, InferenceFailed, Overloaded, RequestError
from server.ipc.messages import ModelInfo
from server.latency.queueing import WorkEstimate
from server.metrics import Metrics
from tome_core.schedule import Schedule

T = TypeVar("T")
Body = TypeVar("Body", bound=Asked)


class Inference:
    """Takes a request whose parameters are right to its answer."""

    def __init__(
        self, engine: EnginePool, admission: Admission, decoder: DecodePool, metrics: Metrics
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._decoder = decoder
        self._metrics = metrics

    async def run(
        self, request: Request, params: Params, record: RequestContext, kind: Kind[T]
    ) -> T | list[T | Problem]:
        """One answer for an image as the body, or for a picture; else one result per file of a multipart body.

        Raises:
            RequestError: why there is no answer.
            ClientDisconnect: the client has gone away; what was under way for it has been
                cancelled.
        """
        claim = self._claim(params)
        with (
            self._admission.admit(request, claim, params.deadline) as lease,
            self._admission.reserve() as reservation,
        ):
            async with until(params.deadline):
                uploads = await self._read_uploads(request, record, reservation)
                if is_multipart(request.headers.get("content-type")) and not kind.picture:
                    results = self._answer_each(uploads, lease, params, record, kind)
                    return await while_connected(request.receive, results)
                answer = self._answer(the_only(uploads), lease, params, record, kind)
                return await while_connected(request.receive, answer)

    async def run_together(
        self, request: Request, params: Params, record: RequestContext, kind: Kind[T]
    ) -> list[T]:
        """An answer for the image as the body, or for each file of a multipart body.

        Raises:
            As `run`. One file without an answer leaves the request without one.
        """
        claim = self._claim(params)
        with (
            self._admission.admit(request, claim, params.deadline) as lease,
            self._admission.reserve() as reservation,
        ):
            async with until(params.deadline):
                uploads = await self._read_uploads(request, record, reservation)
                results = self._answer_together(uploads, lease, params, record, kind)
                return await while_connected(request.receive, results)

    async def run_asked(
        self, request: Request, read: Callable[[bytes], Body], record: RequestContext, kind: Kind[T]
    ) -> tuple[Body, list[T]]:
        """What a body asks for that holds its parameters itself, and an answer for each of its images.

        Args:
            read: finds out what a body asks for, in a decode thread.

        Raises:
            As `run_together`.
        """
        with (
            self._admission.admit(request, None, None) as lease,
            self._admission.reserve() as reservation,
        ):
            body = await self._read_body(request, record, reservation)
            return await while_connected(
                request.receive, self._answer_asked(body, read, lease, record, kind)
            )

    async def _read_body(
        self, request: Request, record: RequestContext, reservation: Reservation
    ) -> Upload:
        chunks: list[bytes] = []
        await self._admission.read(request, reservation, chunks.append)
        self._end_stage(record, "body", time.monotonic() - record.started, then="decode")
        content = b"".join(chunks)
        return Upload(content, reservation, len(content))

    async def _read_uploads(
        self, request: Request, record: RequestContext, reservation: Reservation
    ) -> list[Upload]:
        """The image that the body is, or the files of a multipart body."""
        if not is_multipart(request.headers.get("content-type")):
            return [await self._read_body(request, record, reservation)]
        parts = FileParts(request.headers["content-type"])
        await self._admission.read(request, reservation, parts.feed)
        self._end_stage(record, "body", time.monotonic() - record.started, then="decode")
        return [Upload(content, reservation, len(content)) for content in parts.finish()]

    async def _answer_asked(
        self,
        body: Upload,
        read: Callable[[bytes], Body],
        lease: Lease,
        record: RequestContext,
        kind: Kind[T],
    ) -> tuple[Body, list[T]]:
        try:
            asked = await self._decoder.run(lambda: read(body.encoded()))
        finally:
            body.forget()
        params = asked.params
        record.model = params.model.name
        record.r = params.text
        self._admission.check_in_time(self._claim(params), params.deadline)
        async with until(params.deadline):
            return asked, await self._answer_together(asked.take(body), lease, params, record, kind)

    async def _answer_together(
        self,
        uploads: list[Upload],
        lease: Lease,
        params: Params,
        record: RequestContext,
        kind: Kind[T],
    ) -> list[T]:
        """An answer for each image, or the error of the first that fails, with its ``index``.

        Their slots are taken before any work is done.
        """

        async def result(index: int, upload: Upload, own: Lease) -> T:
            try:
                return await self._answer(upload, own, params, record, kind)
            except RequestError as error:
                if len(uploads) > 1:
                    error.extensions["index"] = index
                raise

        with contextlib.ExitStack() as stack:
            leases = [lease] + [
                stack.enter_context(self._engine.lease(self._claim(params))) for _ in uploads[1:]
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    each = zip(uploads, leases, strict=True)
                    tasks = [
                        group.create_task(result(index, *one)) for index, one in enumerate(each)
                    ]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[
                    0
                ] from None  # the first that failed; the others were cancelled then
            return [task.result() for task in tasks]

    async def _answer_each(
        self,
        uploads: list[Upload],
        lease: Lease,
        params: Params,
        record: RequestContext,
        kind: Kind[T],
    ) -> list[T | Problem]:
        """Each file's answer, or its problem. The request's own slot is for the first; others find one or do not."""

        async def result(upload: Upload, own: Lease | None) -> T | Problem:
            try:
                with (
                    contextlib.nullcontext(own) if own else self._engine.lease(self._claim(params))
                ) as lease:
                    return await self._answer(upload, lease, params, record, kind)
            except RequestError as error:
                self._metrics.observe_error(error)
                return describe(error)

        own_leases = [lease] + [None] * (len(uploads) - 1)
        # A group waits for all of its tasks whatever happens: none may go on once the request's
        # slot is given back.
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(result(*each)) for each in zip(uploads, own_leases, strict=True)
            ]
        return [task.result() for task in tasks]

    async def _answer(
        self, upload: Upload, lease: Lease, params: Params, record: RequestContext, kind: Kind[T]
    ) -> T:
        """Decode one image into its slot, have it run, and say what came out."""
        model = params.model
        began = time.monotonic()
        try:
            pixels = await self._pixels(upload, model)
            lease.write(pixels)
        finally:
            upload.drop()
        decoding = self._end_stage(record, "decode", time.monotonic() - began, then="queue")
        kept = pixels if kind.picture else None
        del pixels
        result = await lease.run(
            model.name, params.choices, params.top_k, params.deadline, params.want
        )
        used = self._check(result)
        record.r = str(used)
        timing = Timing(
            decode=decoding,
            queue=record.note("queue", result.outcome.queue_seconds),
            forward=record.note("forward", result.batch.forward_seconds),
        )
        answer = await self._make(
            kind, Done(params, result.outcome, timing, result.batch.images, kept), record
        )
        self._metrics.observe_image(model.name, used)
        return answer

    async def _pixels(self, upload: Upload, model: ModelInfo) -> npt.NDArray[Any]:
        if isinstance(upload.content, np.ndarray):
            return upload.content
        return await self._decoder.decode(upload.encoded, model.transform)

    def _check(self, result: Result) -> Schedule:
        """The schedule that an image ran under.

        Raises:
            DeadlineExceeded, Overloaded, InferenceFailed: it has nothing of what was wanted.
        """
        outcome = result.outcome
        if outcome.failure == "expired":
            raise DeadlineExceeded("the deadline passed before the image's turn came")
        if outcome.failure == "refused":
            text = "the answer would not be there before the deadline"
            raise Overloaded(text, retry_after=self._engine.retry_after(), reason="deadline")
        if outcome.failure == "out-of-memory":
            raise Overloaded(
                "the device had no memory left for this image",
                retry_after=5,
                reason="out-of-memory",
            )
        if outcome.failure or outcome.schedule is None:
            raise InferenceFailed("the model gave no valid numbers for this image")
        return outcome.schedule

    def _claim(self, params: Params) -> WorkEstimate:
        return self._engine.claim(params.model.name, params.choices, params.deadline)

    async def _make(self, kind: Kind[T], done: Done, record: RequestContext) -> T:
        if not kind.picture:
            return kind.make(done)
        record.stage = "picture"
        began = time.monotonic()
        answer = await self._decoder.run(lambda: kind.make(done))
        self._end_stage(record, "picture", time.monotonic() - began, then="picture")
        return answer

    def _end_stage(self, record: RequestContext, stage: str, seconds: float, then: str) -> float:
        self._metrics.stage_duration.labels(stage).observe(seconds)
        record.stage = then
        return record.note(stage, seconds)

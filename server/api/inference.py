"""The way of an image, from top to bottom and whatever is wanted of it: admit, read, decode, submit, answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from server.api.admission import Admission, Reservation
from server.api.answers import Done, Kind
from server.api.decoder import Decoder
from server.api.multipart import FileParts, is_multipart
from server.api.observe import Record
from server.api.params import Params
from server.api.problems import describe
from server.api.schemas import Problem, Timing
from server.engine.client import Result
from server.engine.pool import EnginePool, Lease
from server.errors import BadImage, DeadlineExceeded, InferenceFailed, Overloaded, RequestError
from server.metrics import Metrics
from server.waiting import Claim
from tome_core.schedule import Schedule

T = TypeVar("T")


@dataclass
class Upload:
    """One encoded image, counted in ``reservation`` until it is dropped."""

    content: bytes
    reservation: Reservation

    def drop(self) -> None:
        """It is decoded: give its bytes back."""
        self.reservation.release(len(self.content))
        self.content = b""


class Inference:
    """Takes a request whose parameters are right to its answer."""

    def __init__(self, engine: EnginePool, admission: Admission, decoder: Decoder, metrics: Metrics) -> None:
        self._engine, self._admission, self._decoder, self._metrics = engine, admission, decoder, metrics

    async def run(self, request: Request, params: Params, record: Record, kind: Kind[T]) -> T | list[T | Problem]:
        """One answer for an image as the body, or for a picture; else one result per file of a multipart body.

        Raises:
            RequestError: why there is no answer.
            ClientDisconnect: the client has gone away; what was under way for it has been cancelled.
        """
        claim = self._claim(params)
        with self._admission.admit(request, claim, params.deadline) as lease, self._admission.reserve() as reservation:
            try:
                async with asyncio.timeout_at(params.deadline):
                    if is_multipart(request.headers.get("content-type")):
                        uploads = await self._read_files(request, record, reservation)
                        if not kind.picture:
                            results = self._answer_all(uploads, lease, params, record, kind)
                            return await while_connected(request.receive, results)
                        upload = the_only(uploads)
                    else:
                        upload = await self._read_image(request, record, reservation)
                    return await while_connected(request.receive, self._answer(upload, lease, params, record, kind))
            except TimeoutError:
                raise DeadlineExceeded("the deadline passed before the answer was there") from None

    async def _read_image(self, request: Request, record: Record, reservation: Reservation) -> Upload:
        chunks: list[bytes] = []
        await self._admission.read(request, reservation, chunks.append)
        self._end_stage(record, "body", time.monotonic() - record.started, then="decode")
        return Upload(b"".join(chunks), reservation)

    async def _read_files(self, request: Request, record: Record, reservation: Reservation) -> list[Upload]:
        parts = FileParts(request.headers["content-type"])
        await self._admission.read(request, reservation, parts.feed)
        self._end_stage(record, "body", time.monotonic() - record.started, then="decode")
        return [Upload(content, reservation) for content in parts.finish()]

    async def _answer_all(
        self, uploads: list[Upload], lease: Lease, params: Params, record: Record, kind: Kind[T]
    ) -> list[T | Problem]:
        """Each file's answer, or its problem. The request's own slot is for the first; others find one or do not."""

        async def result(upload: Upload, own: Lease | None) -> T | Problem:
            try:
                with contextlib.nullcontext(own) if own else self._engine.lease(self._claim(params)) as lease:
                    return await self._answer(upload, lease, params, record, kind)
            except RequestError as error:
                self._metrics.observe_error(error)
                return describe(error)

        own_leases = [lease] + [None] * (len(uploads) - 1)
        # A group waits for all of its tasks whatever happens: none may go on once the request's slot is given back.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(result(*each)) for each in zip(uploads, own_leases, strict=True)]
        return [task.result() for task in tasks]

    async def _answer(self, upload: Upload, lease: Lease, params: Params, record: Record, kind: Kind[T]) -> T:
        """Decode one image into its slot, have it run, and say what came out."""
        model, began = params.model, time.monotonic()
        try:
            pixels = await self._decoder.decode(lambda: upload.content, model.transform)
        finally:
            upload.drop()
        slot = lease.pixels(model.transform.size)
        np.copyto(slot, pixels)
        decoding = self._end_stage(record, "decode", time.monotonic() - began, then="queue")
        kept = slot.copy() if kind.picture else None  # the slot is another's as soon as the engine has answered
        result = await lease.run(model.name, params.choices, params.top_k, params.deadline, params.want)
        used = self._check(result)
        record.r = str(used)
        timing = Timing(
            decode=decoding,
            queue=record.note("queue", result.outcome.queue_seconds),
            forward=record.note("forward", result.batch.forward_seconds),
        )
        answer = await self._make(kind, Done(params, result.outcome, timing, result.batch.images, kept), record)
        self._metrics.observe_image(model.name, used)
        return answer

    def _check(self, result: Result) -> Schedule:
        """The schedule that an image ran under.

        Raises:
            DeadlineExceeded, Overloaded, InferenceFailed: it has nothing of what was wanted.
        """
        outcome = result.outcome
        if outcome.failure == "expired":
            raise DeadlineExceeded("the deadline passed before the image's turn came")
        if outcome.failure == "refused":
            text = "with none of the allowed r would the answer be there before the deadline"
            raise Overloaded(text, retry_after=self._engine.retry_after(), reason="deadline")
        if outcome.failure == "out-of-memory":
            raise Overloaded("the device had no memory left for this image", retry_after=5, reason="out-of-memory")
        if outcome.failure or outcome.schedule is None:
            raise InferenceFailed("the model gave no valid numbers for this image")
        return outcome.schedule

    def _claim(self, params: Params) -> Claim:
        return self._engine.claim(params.model.name, params.choices, params.deadline)

    async def _make(self, kind: Kind[T], done: Done, record: Record) -> T:
        if not kind.picture:
            return kind.make(done)
        record.stage, began = "picture", time.monotonic()
        answer = await self._decoder.run(lambda: kind.make(done))
        self._end_stage(record, "picture", time.monotonic() - began, then="picture")
        return answer

    def _end_stage(self, record: Record, stage: str, seconds: float, then: str) -> float:
        self._metrics.stage_duration.labels(stage).observe(seconds)
        record.stage = then
        return record.note(stage, seconds)


def the_only(uploads: list[Upload]) -> Upload:
    """The one of ``uploads``. Raises `BadImage` if there are more."""
    if len(uploads) > 1:
        raise BadImage(f"the multipart body has {len(uploads)} files; there is one picture a request, so send one")
    return uploads[0]


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, unless the client goes away first.

    Raises:
        ClientDisconnect: it has; ``work`` is cancelled.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the client has gone away; its request's body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass

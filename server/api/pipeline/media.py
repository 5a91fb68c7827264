"""The path of one sound or video: decode it in a worker, run its windows, and answer once.

Each window is one job in one slot, as an image is. A request holds one slot from its admission to
the end. For a body of more windows it takes further slots only as far as they are free, without
waiting, and runs the windows in rounds. So every admitted request proceeds, however many there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from server.api.contract.failures import error_of
from server.api.contract.params import Params
from server.api.contract.schemas import Timing
from server.api.contract.windows import Windows
from server.api.pipeline.admission import Admission, BufferedInput
from server.api.pipeline.base64_image import Base64Image
from server.api.pipeline.image import build_response, end_stage, record_stage
from server.api.pipeline.inference_request import InferenceRequest
from server.api.pipeline.media_responses import FinishedMedia, most_merged
from server.api.pipeline.modalities import name_modality
from server.api.pipeline.threads import Threads
from server.api.pipeline.together import run_together
from server.engine_client.link import Result
from server.engine_client.routing import Lease, Router
from server.errors import BadImage, BadMedia, UnsupportedFormat
from server.latency.queueing import WorkEstimate
from server.media.decoded import Decoded
from server.media.transforms import ImageTransform, MediaTransform
from server.metrics.api import Metrics

T = TypeVar("T")


class MediaDecoder(Protocol):
    """Decodes beside the event loop; `server.decoding.pool.DecodePool` is one."""

    async def decode(self, body: bytes, transform: MediaTransform) -> Decoded:
        """Return the windows of ``body``. Raises `RequestError`. A cancellation ends the work."""
        ...


class MediaPath:
    """Takes a sound or a video from its encoded bytes to its response.

    Args:
        threads: for work that would block the event loop: base64 and drawing.
    """

    def __init__(
        self,
        router: Router,
        admission: Admission,
        metrics: Metrics,
        decoder: MediaDecoder,
        threads: Threads,
    ) -> None:
        self._router = router
        self._admission = admission
        self._metrics = metrics
        self._decoder = decoder
        self._threads = threads

    async def infer(
        self,
        media: BufferedInput,
        lease: Lease,
        request: InferenceRequest[T],
        keep_slot: bool = False,
    ) -> T:
        """Decode one sound or video, run its windows, and build its response.

        Args:
            lease: the slot that it holds.
            keep_slot: whether another input will use that slot.

        Raises:
            RequestError: it cannot be decoded, or one of its windows fails.
        """
        params = request.params
        context = request.context
        started = time.monotonic()
        try:
            decoded = await self._decode(media, params)
            if params.windows is Windows.FIRST:
                # A copy, so that the other inputs are freed.
                first = decoded.inputs[:1].copy()
                decoded = Decoded(first, decoded.windows[:1], decoded.media)
            media.replace_by(decoded.inputs.nbytes)
            decode_ms = end_stage(self._metrics, context, "decode", started, next_stage="queue")
            windows = decoded.windows
            info = decoded.media
            picture_inputs = decoded.inputs if request.response_kind.is_picture else None
            waiting = deque(decoded.inputs)
            # Only a picture needs the inputs again; others are freed once they are in their slots.
            del decoded
            self._check_deadline(request, len(waiting))
            results = await self._run_windows(waiting, media, lease, request, keep_slot)
        finally:
            media.release()
        timing = self._timing(request, decode_ms, results)
        outcomes = tuple(result.outcome for result in results)
        batch_size = max(result.batch.images for result in results)
        finished = FinishedMedia(
            params, info, windows, outcomes, timing, batch_size, picture_inputs
        )
        context.r = str(most_merged(outcomes).schedule)
        response = await build_response(
            lambda: request.response_kind.build_media(finished),
            request,
            self._threads,
            self._metrics,
        )
        for outcome in outcomes:
            assert outcome.schedule is not None
            self._metrics.observe_image(params.model.name, outcome.schedule)
        return response

    def _timing(
        self, request: InferenceRequest[Any], decode_ms: float, results: Sequence[Result]
    ) -> Timing:
        """Record the longest wait of a window, and the time of all their batches."""
        context = request.context
        batches = {id(result.batch): result.batch for result in results}.values()
        queue_seconds = max(result.outcome.queue_seconds for result in results)
        forward_seconds = sum(batch.forward_seconds for batch in batches)
        return Timing(
            decode=decode_ms,
            queue=record_stage(context, "queue", queue_seconds),
            forward=record_stage(context, "forward", forward_seconds),
        )

    async def _decode(self, media: BufferedInput, params: Params) -> Decoded:
        model = params.model
        noun = model.modality.noun
        body = await self._encoded_bytes(media, noun)
        media.clear()
        if not body:
            raise BadMedia(f"the body is empty; send an encoded {noun}")
        transform = params.transform
        assert not isinstance(transform, ImageTransform)
        try:
            return await self._decoder.decode(body, transform)
        except UnsupportedFormat as error:
            raise name_modality(error, body, model.modality, model.name) from None

    async def _encoded_bytes(self, media: BufferedInput, noun: str) -> bytes:
        if not isinstance(media.content, Base64Image):
            return media.encoded_bytes()
        try:
            return await self._threads.run(media.encoded_bytes)
        except BadImage:
            raise BadMedia(
                f"the {noun} is not base64, nor a data URL with base64; the server fetches no other"
                " URL"
            ) from None

    async def _run_windows(
        self,
        waiting: deque[npt.NDArray[Any]],
        media: BufferedInput,
        lease: Lease,
        request: InferenceRequest[Any],
        keep_slot: bool,
    ) -> list[Result]:
        """Run the inputs ``waiting``, in rounds of as many as get a slot, and return their results.

        Args:
            waiting: becomes empty.
            media: gives its bytes back when all its inputs are in slots.
            lease: the slot that it holds.
            keep_slot: whether it holds that slot beyond the last round.
        """
        # To average, all classes are needed.
        top_k = request.params.top_k
        if len(waiting) > 1 and top_k:
            top_k = len(request.params.labels)
        results: list[Result] = []
        while waiting:
            with contextlib.ExitStack() as further_slots:
                leases = [lease]
                for _ in range(min(len(waiting) - 1, self._router.free_slots)):
                    leases.append(further_slots.enter_context(self._lease(request)))
                for own_lease in leases:
                    own_lease.write(waiting.popleft())
                    await asyncio.sleep(0)  # a clip takes milliseconds
                is_last_round = not waiting
                if is_last_round:
                    media.release()
                results += await run_together(
                    self._run_window(
                        own_lease,
                        request,
                        top_k,
                        keep_slot=own_lease is lease and (keep_slot or not is_last_round),
                    )
                    for own_lease in leases
                )
        return results

    async def _run_window(
        self, lease: Lease, request: InferenceRequest[Any], top_k: int, *, keep_slot: bool
    ) -> Result:
        params = request.params
        submitted = time.monotonic()
        result = await lease.submit(
            params.model.name,
            params.choices,
            top_k,
            params.deadline,
            request.response_kind.output,
            request_id=request.context.id,
            keep_slot=keep_slot,
            label_set=params.label_set_name,
        )
        outcome = result.outcome
        if outcome.failure or outcome.schedule is None:
            raise error_of(outcome.failure, self._router.retry_after)
        request.context.record_run(submitted, result)
        return result

    def _check_deadline(self, request: InferenceRequest[Any], windows: int) -> None:
        """Raise `Overloaded` if ``windows`` would miss the deadline; one of them is admitted."""
        if windows > 1:
            estimate = self._estimate_work(request)
            self._admission.check_deadline(estimate, request.params.deadline, windows - 1)

    def _lease(self, request: InferenceRequest[Any]) -> contextlib.AbstractContextManager[Lease]:
        return self._router.lease(self._estimate_work(request))

    def _estimate_work(self, request: InferenceRequest[Any]) -> WorkEstimate:
        params = request.params
        return self._router.estimate_work(
            params.model.name,
            params.choices,
            params.deadline,
            generation=params.model.generation,
        )

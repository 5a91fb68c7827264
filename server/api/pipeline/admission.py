"""Admission of requests: one slot per image, and limits on the bytes of all bodies in memory.

A request is admitted with the lease of one slot, for its first image. Further images of the request
lease their slots after the body is read, as far as some are free; see
`server.api.pipeline.inference`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from starlette.requests import ClientDisconnect, Request

from server.api.contract.asgi_extensions import CLIENT_CONNECTION, ClientConnection
from server.api.pipeline.base64_image import Base64Image
from server.engine_client.routing import Lease, Router
from server.errors import Overloaded, Refusal, SlowBody, TooLarge
from server.latency.queueing import WorkEstimate, whole_retry_seconds
from server.media.modality import Modality

log = logging.getLogger("tome.server")

_POLL_SECONDS = 0.02
# A client that retries after this time reaches the restarted server, or another replica.
_DRAINING_RETRY_SECONDS = 5


@dataclass(frozen=True)
class BodyLimits:
    """Limits on one request body, by what its model takes.

    Attributes:
        max_bytes: of the body.
        timeout_seconds: for the body to arrive.
    """

    max_bytes: int
    timeout_seconds: float


class Reservation:
    """The bytes of one request that count against the limits; see `Admission.reserve`.

    A context manager, so that none counts after it.

    Attributes:
        limits: of its body.
    """

    def __init__(self, admission: Admission, limits: BodyLimits) -> None:
        self._admission = admission
        self.limits = limits
        self._received_bytes = 0
        self._held_bytes = 0

    def add(self, size: int) -> None:
        """Count ``size`` more bytes that have arrived. Raises `TooLarge` or `Overloaded`."""
        max_bytes = self.limits.max_bytes
        self._received_bytes += size
        if self._received_bytes > max_bytes:
            raise TooLarge(f"the body has more than {max_bytes} bytes", limit=max_bytes)
        self.hold(size)

    def hold(self, size: int) -> None:
        """Count ``size`` more bytes that are in memory. Raises `Overloaded`."""
        self._admission.hold(size)
        self._held_bytes += size

    def release(self, size: int) -> None:
        """Stop counting ``size`` bytes, which are decoded and no longer in memory."""
        assert size <= self._held_bytes
        self._held_bytes -= size
        self._admission.release(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting all bytes of this body."""
        self.release(self._held_bytes)


# An encoded image, sound or video, or one in base64; or the model's input in the layout of its
# slot, (C, H, W): float32 is normalised, and the engine normalises uint8.
ImageContent = bytes | Base64Image | npt.NDArray[np.float32] | npt.NDArray[np.uint8]


@dataclass
class BufferedInput:
    """One image, sound or video, or a whole body, in memory.

    Attributes:
        size: its bytes that count in ``reservation``.
    """

    content: ImageContent
    reservation: Reservation
    size: int

    def encoded_bytes(self) -> bytes:
        """Return the encoded file, or the body; empty bytes once it is cleared.

        Raises:
            BadImage: the content is to be base64, and is not.
        """
        if isinstance(self.content, Base64Image):
            return self.content.decode()
        assert isinstance(self.content, bytes)
        return self.content

    def split(self, images: Sequence[ImageContent]) -> list[BufferedInput]:
        """Return the ``images`` that were parsed from this body. All its bytes count for them."""
        sizes = [image.nbytes if isinstance(image, np.ndarray) else len(image) for image in images]
        total = max(sum(sizes), 1)
        return [
            BufferedInput(image, self.reservation, self.size * size // total)
            for image, size in zip(images, sizes, strict=True)
        ]

    def clear(self) -> None:
        """Drop the content. Its bytes still count: parts of it are in memory elsewhere."""
        self.content = b""

    def release(self) -> None:
        """Drop the content, and give its bytes back to the reservation."""
        self.reservation.release(self.size)
        self.content = b""
        self.size = 0

    def replace_by(self, size: int) -> None:
        """Drop the content: what was decoded from it has ``size`` bytes. Raises `Overloaded`."""
        self.release()
        self.reservation.hold(size)
        self.size = size


class Admission:
    """Admits requests, and counts the requests and bytes in flight.

    Args:
        limits: on one body, by what its model takes.
        max_total_bytes: of all bodies that are in the memory of all API processes at the same
            time, and of the windows of sounds and videos that wait for a slot.

    Attributes:
        draining: whether the server stops, so that no more requests are admitted.
        closing: whether connections end after their responses: the server stops, or this process.
        admitted: how many requests are in flight in this process.
        bytes_held: how many bytes of their bodies are in the memory of this process.
    """

    def __init__(
        self,
        router: Router,
        limits: Mapping[Modality, BodyLimits],
        max_total_bytes: int,
    ) -> None:
        self._router = router
        self.limits = limits
        self.max_total_bytes = max_total_bytes
        self.draining = False
        self.closing = False
        self.admitted = 0
        self.bytes_held = 0
        self._board = router.engines.board
        self._row = self._board.workers[router.engines.worker]
        self._body_timeouts: set[asyncio.Timeout] = set()

    def retry_after(self) -> int:
        """Return the seconds after which a request that is refused now may be admitted."""
        return self._router.retry_after()

    def hold(self, size: int) -> None:
        """Count ``size`` more bytes in memory. Raises `Overloaded` if those are too many."""
        if self._board.held_bytes + size > self.max_total_bytes:
            raise Overloaded(
                "too many bytes of other requests are held",
                retry_after=self.retry_after(),
                reason=Refusal.MEMORY_FULL,
            )
        self.release(-size)

    def release(self, size: int) -> None:
        """Count ``size`` bytes less."""
        self.bytes_held -= size
        self._row.set_held_bytes(self.bytes_held)

    def stop_admitting(self, body_seconds: float) -> None:
        """Admit no more requests, and give arriving bodies at most ``body_seconds`` more."""
        self.draining = True
        self.closing = True
        limit = asyncio.get_running_loop().time() + body_seconds
        for timeout in self._body_timeouts:
            if not timeout.expired():
                timeout.reschedule(min(limit, timeout.when() or limit))

    def retire(self) -> None:
        """Let connections end after their responses: another process takes what follows."""
        self.closing = True

    async def wait_until_drained(
        self, seconds: float, stop_forced: asyncio.Event | None = None
    ) -> bool:
        """Wait until no request is in flight, and return whether that is so.

        Args:
            seconds: how long to wait at most.
            stop_forced: ends the wait at once when it is set.
        """
        end = time.monotonic() + seconds
        while self.admitted and time.monotonic() < end:
            if stop_forced is not None and stop_forced.is_set():
                break
            await asyncio.sleep(_POLL_SECONDS)
        if self.admitted:
            log.error("%d requests were cut off", self.admitted)
        return not self.admitted

    def check_open(self) -> None:
        """Raise `Overloaded` while the server stops, or while no engine is ready."""
        if self.draining:
            raise Overloaded(
                "the server is stopping",
                retry_after=_DRAINING_RETRY_SECONDS,
                reason=Refusal.DRAINING,
            )
        self._router.check_ready()

    def check_room(self) -> None:
        """Raise `Overloaded` if a request would not be admitted now."""
        self.check_open()
        self._router.check_room()

    @contextlib.contextmanager
    def admit(
        self,
        request: Request,
        modality: Modality,
        estimate: WorkEstimate | None,
        deadline: float | None,
        expected: WorkEstimate | None = None,
        generation: int | None = None,
    ) -> Iterator[Lease]:
        """Admit ``request`` before its body is read, and hold a slot for its first image.

        Args:
            modality: what its model takes.
            estimate: the work of its image, at least, where that is known before the body is read.
            expected: what counts for others; default: ``estimate``.
            generation: of its model, where there is no estimate; default: the one that serves.

        Raises:
            Overloaded: the server stops, is not ready, is full, or cannot answer before
                ``deadline``.
            TooLarge: the Content-Length is over the limit.
        """
        self.check_open()
        if estimate is not None:
            self.check_deadline(estimate, deadline)
        _check_content_length(request, self.limits[modality].max_bytes)
        with self._router.lease(expected or estimate, generation) as lease:
            self._count_requests(1)
            try:
                yield lease
            finally:
                self._count_requests(-1)

    def _count_requests(self, change: int) -> None:
        self.admitted += change
        self._row.set_requests(self.admitted)

    def check_deadline(
        self, estimate: WorkEstimate, deadline: float | None, images: int = 1
    ) -> None:
        """Raise `Overloaded` if ``images`` of ``estimate`` would not be done by ``deadline``."""
        if deadline is None:
            return
        now = time.monotonic()
        needed = self._router.seconds_to_complete(estimate, images)
        # A deadline that has already passed says nothing about the load of the server.
        if now < deadline < now + needed:
            raise Overloaded(
                f"the answer would take {needed:.3g} s, and the deadline is in"
                f" {deadline - now:.3g} s",
                retry_after=whole_retry_seconds(now + needed - deadline),
                reason=Refusal.DEADLINE,
            )

    def max_bytes(self, modality: Modality) -> int:
        """Return the limit on the body of a request whose model takes ``modality``."""
        return self.limits[modality].max_bytes

    def check_size(self, size: int, modality: Modality) -> None:
        """Raise `TooLarge` if a body of ``size`` bytes is too large for ``modality``."""
        limit = self.max_bytes(modality)
        if size > limit:
            raise TooLarge(f"the body has {size} bytes; allowed are {limit}", limit=limit)

    def reserve(self, modality: Modality) -> Reservation:
        """Count the bytes of one body against the limits, until its block is left at the latest.

        Args:
            modality: what the model of the request takes.
        """
        return Reservation(self, self.limits[modality])

    async def read_whole_body(self, request: Request, reservation: Reservation) -> BufferedInput:
        """Return the whole body. Raises what `read_body` raises."""
        chunks: list[bytes] = []
        await self.read_body(request, reservation, chunks.append)
        content = b"".join(chunks)
        return BufferedInput(content, reservation, len(content))

    async def read_body(
        self,
        request: Request,
        reservation: Reservation,
        on_chunk: Callable[[bytes], object],
    ) -> None:
        """Call ``on_chunk`` with each chunk of the body of ``request`` as it arrives.

        Raises:
            TooLarge, Overloaded: see `Reservation.add`.
            SlowBody: the body did not arrive in time.
            ClientDisconnect: the client has disconnected.
        """
        connection: ClientConnection | None = request.scope.get("extensions", {}).get(
            CLIENT_CONNECTION
        )
        if connection is not None and connection.body_arrived:
            return await _receive_body(request, reservation, on_chunk)  # without a timer
        seconds = reservation.limits.timeout_seconds
        try:
            async with asyncio.timeout(seconds) as timeout:
                self._body_timeouts.add(timeout)
                await _receive_body(request, reservation, on_chunk)
        except TimeoutError:
            raise self._slow_body(seconds) from None
        finally:
            self._body_timeouts.discard(timeout)

    def _slow_body(self, seconds: float) -> SlowBody:
        if self.draining:
            return SlowBody("the body did not arrive before the server stopped")
        return SlowBody(f"the body did not arrive within {seconds:g} s")


async def _receive_body(
    request: Request, reservation: Reservation, on_chunk: Callable[[bytes], object]
) -> None:
    more_body = True
    while more_body:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        reservation.add(len(chunk))
        on_chunk(chunk)
        more_body = message.get("more_body", False)


def _check_content_length(request: Request, max_bytes: int) -> None:
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length) > max_bytes:
        raise TooLarge(
            f"the body has {content_length} bytes; allowed are {max_bytes}",
            limit=max_bytes,
        )

"""Who may come in: one slot per request, and bytes counted while they arrive. All that a client can fill is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from starlette.requests import Request

from server.engine_client.lease import Lease
from server.engine_client.pool import EnginePool
from server.errors import Overloaded, SlowBody, TooLarge
from server.latency.queueing import WorkEstimate, retry_after

log = logging.getLogger("tome.server")

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class BodyLimits:
    """Bounds on bodies: of one, of all that are held at once (bytes), and of the time one takes (seconds)."""

    one: int
    all: int
    timeout: float


class Reservation:
    """Bytes of one request's body; see `Admission.reserve`."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._arrived = self._held = 0

    def add(self, size: int) -> None:
        """Count ``size`` more bytes that have arrived. Raises `TooLarge` or `Overloaded`."""
        limits = self._admission.limits
        self._arrived += size
        if self._arrived > limits.one:
            raise TooLarge(f"the body has more than {limits.one} bytes", limit=limits.one)
        if self._admission.bytes_held + size > limits.all:
            after = self._admission.retry_after()
            raise Overloaded(
                "too many bytes of other requests are held", retry_after=after, reason="memory-full"
            )
        self._held += size
        self._admission.bytes_held += size

    def release(self, size: int) -> None:
        """``size`` bytes are decoded and not held any more."""
        assert size <= self._held
        self._held -= size
        self._admission.bytes_held -= size

    def release_all(self) -> None:
        """Nothing of this body is held any more."""
        self.release(self._held)


class Admission:
    """Lets requests in, and knows how many are inside.

    Attributes:
        draining: no more are let in, since the server stops.
        admitted: requests inside.
        bytes_held: of their bodies.
    """

    def __init__(self, engine: EnginePool, limits: BodyLimits) -> None:
        self._engine = engine
        self.limits = limits
        self.draining = False
        self.admitted = 0
        self.bytes_held = 0
        self._arriving: set[asyncio.Timeout] = set()

    def retry_after(self) -> int:
        """Seconds after which a request that is refused now may find room."""
        return self._engine.retry_after()

    def drain(self, body_seconds: float) -> None:
        """Let nobody in any more; bodies that are arriving have ``body_seconds`` left at most."""
        self.draining = True
        limit = asyncio.get_running_loop().time() + body_seconds
        for timer in self._arriving:
            if not timer.expired():
                timer.reschedule(min(limit, timer.when() or limit))

    async def answered(self, seconds: float, forced: asyncio.Event | None = None) -> bool:
        """Wait until every request inside is answered, or ``forced`` is set, ``seconds`` at most; whether all are."""
        end = time.monotonic() + seconds
        while self.admitted and time.monotonic() < end and not (forced and forced.is_set()):
            await asyncio.sleep(_POLL_SECONDS)
        if self.admitted:
            log.error("%d requests were cut off", self.admitted)
        return not self.admitted

    def check_open(self) -> None:
        """Raises `Overloaded` unless work is taken at all."""
        if self.draining:
            raise Overloaded("the server is stopping", retry_after=5, reason="draining")
        if not self._engine.ready:
            raise Overloaded(
                "the models are not loaded",
                retry_after=self._engine.retry_after(),
                reason="not-ready",
            )

    def check_room(self) -> None:
        """Raises `Overloaded` unless a request would be let in just now."""
        self.check_open()
        self._engine.check_room()

    @contextlib.contextmanager
    def admit(
        self, request: Request, claim: WorkEstimate | None, deadline: float | None
    ) -> Iterator[Lease]:
        """Let ``request`` in, before its body is read: its slot is its permit.

        Args:
            claim: what its image needs, where that is known before its body is.

        Raises:
            Overloaded: the server is stopping, not ready, full, or too busy to answer before
                ``deadline``.
            TooLarge: the body says that it is.
        """
        self.check_open()
        if claim is not None:
            self.check_in_time(claim, deadline)
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limits.one:
            raise TooLarge(
                f"the body has {announced} bytes; allowed are {self.limits.one}",
                limit=self.limits.one,
            )
        with self._engine.lease(claim) as lease:
            self.admitted += 1
            try:
                yield lease
            finally:
                self.admitted -= 1

    def check_in_time(self, claim: WorkEstimate, deadline: float | None) -> None:
        """Raises `Overloaded` if what ``claim`` needs would not be done by ``deadline``."""
        if deadline is None:
            return
        now = time.monotonic()
        needed = self._engine.predict(claim)
        # A deadline that has passed already is the caller's own matter, and no sign of too much
        # work.
        if now < deadline < now + needed:
            text = (
                f"the answer would take {needed:.3g} s, and the deadline is in"
                f" {deadline - now:.3g} s"
            )
            raise Overloaded(
                text, retry_after=retry_after(now + needed - deadline), reason="deadline"
            )

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Count the bytes of a body against the bounds, until they are released one way or the other."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.release_all()

    async def read(
        self, request: Request, reservation: Reservation, take: Callable[[bytes], object]
    ) -> None:
        """Give the body of ``request`` to ``take`` as it arrives.

        Raises:
            TooLarge, Overloaded: see `Reservation.add`.
            SlowBody: it took too long.
            ClientDisconnect: the client has gone away.
        """
        try:
            async with asyncio.timeout(self.limits.timeout) as timer:
                self._arriving.add(timer)
                async for chunk in request.stream():
                    reservation.add(len(chunk))
                    take(chunk)
        except TimeoutError:
            limit = (
                "before the server stopped"
                if self.draining
                else f"within {self.limits.timeout:g} s"
            )
            raise SlowBody(f"the body did not arrive {limit}") from None
        finally:
            self._arriving.discard(timer)

"""The link to one engine process: jobs go out, the outcomes of batches come in."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, cast

from server.engine_client.slots import SlotShare
from server.errors import EngineLost
from server.ipc.messages import BatchDone, Cancel, Job, Outcome
from server.ipc.packing import BadMessage, check_type, pack, unpack
from server.latency.cost import CostModel

log = logging.getLogger("tome.engine")

_LENGTH_BYTES = 4  # of the length before each message
_BUFFER_BYTES = 1 << 18  # at first; it grows for larger messages


class Result(NamedTuple):
    """The result of one job: its outcome, and the batch in which it ran."""

    outcome: Outcome
    batch: BatchDone


class Pending(NamedTuple):
    """A job that is submitted and not answered: its slot, and who waits for it."""

    slot: int
    future: asyncio.Future[Result]


class EngineLink(asyncio.BufferedProtocol):
    """One channel to one engine process, from its opening until the process has ended.

    When the channel closes, which is how the end of the process shows, all jobs fail at once. Their
    slots stay taken until `engine_ended`: the process may still read them.

    Args:
        slots: among them those of its jobs.
        retry_after: returns the seconds until the engine may be ready again, for its lost jobs.
        on_lost: called when the channel has closed before `engine_ended` and `close`.

    Attributes:
        engine: index of the engine.
        cost_models: the latest cost model of each model, by name.
        ready: whether it takes jobs.
    """

    def __init__(
        self,
        engine: int,
        cost_models: Mapping[str, CostModel],
        slots: SlotShare,
        retry_after: Callable[[], float],
        on_lost: Callable[[EngineLink], None],
    ) -> None:
        self.engine = engine
        self.cost_models = dict(cost_models)
        self.ready = False
        self._slots = slots
        self._retry_after = retry_after
        self._on_lost = on_lost
        self._pending: dict[int, Pending] = {}  # by job
        self._unsent: list[bytes] = []
        self._ended = False
        self._loop: asyncio.AbstractEventLoop
        self._transport: asyncio.Transport
        self._view = memoryview(bytearray(_BUFFER_BYTES))
        self._filled = 0  # bytes of the buffer that have arrived and are not read

    async def open(self, connection: socket.socket) -> None:
        """Take jobs from now on, over ``connection``, which the link owns."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=connection)

    def submit(self, job: Job) -> asyncio.Future[Result]:
        """Send a job to the engine. Cancelling the future cancels the job.

        The job keeps its slot until the engine has answered or ended.
        """
        assert self.ready
        future: asyncio.Future[Result] = self._loop.create_future()
        future.add_done_callback(partial(self._cancel_job, job.id))
        self._pending[job.id] = Pending(job.slot, future)
        self._send(pack(job))
        return future

    def engine_ended(self) -> None:
        """Free the slots of all jobs: the process has ended, and reads none of them.

        What it has sent before its end is delivered first.
        """
        self._ended = True
        if not self.ready:
            self._free_slots()

    def close(self) -> None:
        """Close the channel; jobs that are not answered fail."""
        self._fail_pending()
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take jobs from now on."""
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", transport)
        self.ready = True

    def connection_lost(self, error: Exception | None) -> None:
        """Fail all jobs: the process has closed its end, or has ended."""
        self._lose()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return memory for the next bytes."""
        if self._filled == len(self._view):
            larger = memoryview(bytearray(2 * self._filled))
            larger[: self._filled] = self._view
            self._view = larger
        return self._view[self._filled :]

    def buffer_updated(self, size: int) -> None:
        """Handle all messages that have arrived completely."""
        end = self._filled + size
        start = 0
        try:
            while end - start >= _LENGTH_BYTES and self.ready:
                body = start + _LENGTH_BYTES
                length = int.from_bytes(self._view[start:body], "big")
                if end - body < length:
                    break
                start = body + length
                self._receive(unpack(self._view[body:start]))
        except BadMessage as error:
            log.error("engine %d: %s", self.engine, error)
            self._lose()
            self._transport.abort()
        self._filled = end - start
        if start and self._filled:
            self._view[: self._filled] = self._view[start:end]

    def _receive(self, message: object) -> None:
        """Deliver the outcomes of a batch to those who wait, and free the slots of its jobs."""
        batch = check_type(message, BatchDone)
        if batch.cost_model is not None:
            self.cost_models[batch.model] = batch.cost_model
        for outcome in batch.outcomes:
            pending = self._pending.pop(outcome.id, None)
            if pending is None:
                text = f"the engine answered job {outcome.id}, which it does not have"
                raise BadMessage(text)
            self._slots.free_after_job(pending.slot)
            if not pending.future.done():
                pending.future.set_result(Result(outcome, batch))

    def _cancel_job(self, job_id: int, future: asyncio.Future[Result]) -> None:
        """Tell the engine that a job is cancelled, if its future ended so."""
        if future.cancelled() and self.ready:
            self._send(pack(Cancel(job_id)))

    def _send(self, message: bytes) -> None:
        """Send ``message``, together with the others of this turn of the event loop."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(message)

    def _flush(self) -> None:
        if self.ready:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _lose(self) -> None:
        """Fail all jobs because the channel is closed, unless that is done already."""
        if not self.ready:
            return
        self._fail_pending()
        if self._ended:
            self._free_slots()
        else:
            self._on_lost(self)

    def _fail_pending(self) -> None:
        self.ready = False
        retry_after = self._retry_after()
        for pending in self._pending.values():
            self._slots.withdraw(pending.slot)
            if not pending.future.done():
                error = EngineLost(
                    "the model process was lost; please retry",
                    retry_after=retry_after,
                )
                pending.future.set_exception(error)

    def _free_slots(self) -> None:
        for pending in self._pending.values():
            self._slots.free_after_job(pending.slot)
        self._pending.clear()

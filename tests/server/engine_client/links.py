"""API processes as their engines see them, in this process: the tests are the engines.

Every channel is a real socket pair, whose other end is an `EngineEnd`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from server.engine_client.engines import Engines
from server.engine_client.link import Result
from server.engine_client.routing import Router
from server.ipc.board import Board, BoardSize
from server.ipc.control import EngineUp
from server.ipc.messages import BatchDone, Cancel, Job, ModelInfo, Outcome
from server.ipc.packing import pack, unpack
from server.ipc.shared_memory import Slots, create_memory, size_slots
from server.latency.cost import CostFeatures, CostModel
from server.latency.queueing import WorkEstimate
from server.media.transforms import ImageTransform
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

SIZE = (3, 8, 8)
SLOT_BYTES = 4 * 3 * 8 * 8
MAX_BATCH = 4
GENERATIONS = (0, 7)  # the numbers of those that tests have
TINY = ModelInfo(
    name="tiny",
    architecture="vit",
    transform=ImageTransform(SIZE, "bicubic", 1.0, "center"),
    labels=("cat", "dog", "fish"),
    tokens=5,
    prefix=1,
    depth=2,
    device="cpu",
    dtype="float32",
    levels=(),
    grid=(2, 2),
    cost=Cost(1000, (BlockCost(30, 50, 7, 1),) * 2, prefix=1),
)
PLAIN = [Schedule.constant(0)]
TOKENS = TINY.geometry.image_cost(PLAIN[0]).tokens


def cost_model(seconds: float) -> CostModel:
    """One of an engine that takes ``seconds`` for each image of `TINY`."""
    return CostModel(CostFeatures(tokens=seconds / TOKENS), margin=0.0)


class EngineEnd:
    """The engine's end of one channel.

    Attributes:
        messages: all that have arrived.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setblocking(False)
        self._received = b""
        self.messages: list[object] = []

    @property
    def jobs(self) -> list[Job]:
        return [message for message in self.messages if isinstance(message, Job)]

    @property
    def cancelled(self) -> list[int]:
        return [message.id for message in self.messages if isinstance(message, Cancel)]

    async def receive(self, count: int) -> None:
        """Wait until ``count`` messages have arrived since the start."""
        async with asyncio.timeout(10):
            while len(self.messages) < count:
                chunk = await asyncio.get_running_loop().sock_recv(self._connection, 1 << 16)
                assert chunk
                self._received += chunk
                self._unpack()

    def _unpack(self) -> None:
        while len(self._received) >= 4:
            (size,) = struct.unpack_from("!I", self._received)
            if len(self._received) < 4 + size:
                return
            self.messages.append(unpack(self._received[4 : 4 + size]))
            self._received = self._received[4 + size :]

    def send(self, content: bytes) -> None:
        self._connection.sendall(content)

    def answer(self, jobs: Iterable[Job], cost_model: CostModel | None = None) -> None:
        """Send the outcome of ``jobs``, as one batch; each has its slot as its class."""
        outcomes = tuple(Outcome(job.id, classes=(job.slot,)) for job in jobs)
        batch = BatchDone("tiny", outcomes, images=len(outcomes), cost_model=cost_model)
        self.send(pack(batch))

    def close(self) -> None:
        self._connection.close()


class Server:
    """API processes that share a board, the slots, and engines.

    Attributes:
        workers, routers: by API process.
        reports: the devices of all models that were reported, by API process.
    """

    def __init__(self, engines: int = 1, workers: int = 1, slots: int = 8) -> None:
        size = BoardSize(engines, workers, slots)
        self.board = Board.create(size)
        self.memory = create_memory()
        size_slots(self.memory, slots, SLOT_BYTES)
        self.slots = Slots(self.memory, slots, SLOT_BYTES)
        self.reports: list[list[str]] = [[] for _ in range(workers)]
        self.workers = [
            Engines(
                self.board,
                size,
                self.memory,
                worker,
                MAX_BATCH,
                lambda models, worker=worker: self.reports[worker].append(models[0].device),  # type: ignore[misc]
            )
            for worker in range(workers)
        ]
        self.routers = [Router(engines, target_seconds=1.0) for engines in self.workers]
        self._ends: list[EngineEnd] = []

    def channel(self) -> tuple[socket.socket, EngineEnd]:
        """Return a new channel: the API process's end, and the engine's."""
        connection, engine_connection = socket.socketpair()
        end = EngineEnd(engine_connection)
        self._ends.append(end)
        return connection, end

    async def start(
        self, engine: int = 0, seconds: float = 0.01, models: Sequence[ModelInfo] = (TINY,)
    ) -> list[EngineEnd]:
        """Let all API processes know that ``engine`` is up; return its end to each of them.

        Args:
            seconds: its time for one image.
        """
        ends = []
        for worker in self.workers:
            connection, end = self.channel()
            await worker.engine_up(engine_up(engine, seconds, models), connection)
            ends.append(end)
        return ends

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        for end in self._ends:
            end.close()
        os.close(self.memory)
        os.close(self.board.descriptor)


def engine_up(
    engine: int = 0, seconds: float = 0.01, models: Sequence[ModelInfo] = (TINY,)
) -> EngineUp:
    cost_models = {model.name: cost_model(seconds) for model in models}
    return EngineUp(engine, 1, tuple(models), SLOT_BYTES, cost_models)


@contextlib.asynccontextmanager
async def serving(engines: int = 1, workers: int = 1, slots: int = 8) -> AsyncIterator[Server]:
    """A server without an engine; in the end, every slot is free and the board is empty."""
    server = Server(engines, workers, slots)
    try:
        yield server
        assert [worker.slots.used for worker in server.workers] == [0] * workers
        assert server.board.submitted == 0
        for generation in GENERATIONS:
            assert not server.board.unsubmitted_work(["tiny"], float("inf"), generation)
    finally:
        server.close()
        await asyncio.sleep(0)  # transports close their sockets in the event loop


def observe_batches(router: Router, on_batch: Callable[[BatchDone], None]) -> None:
    """Call ``on_batch`` once with every batch that answers jobs of ``router`` from now on."""
    submit = router.submit
    last: list[BatchDone] = []

    def observe(future: asyncio.Future[Result]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        batch = future.result().batch
        if not any(batch is other for other in last):
            last[:] = [batch]
            on_batch(batch)

    def submit_and_observe(
        job: Job, work: WorkEstimate | None = None, generation: int | None = None
    ) -> asyncio.Future[Result]:
        future = submit(job, work, generation)
        future.add_done_callback(observe)
        return future

    router.submit = submit_and_observe  # type: ignore[method-assign]


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until ``condition()`` is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)

"""The loop on a made-up device that holds batches in flight until the test releases them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from server.engine.clients import Clients
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.in_flight import BatchInFlight
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel
from server.engine.loop import EngineModel, Loop
from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.warmup import model_info
from server.ipc.board import EngineRow
from server.ipc.channel import Channel, ChannelClosed
from server.ipc.messages import BatchDone, Job, Stop
from server.ipc.packing import BadMessage, pack
from server.ipc.shared_memory import Slots, create_memory, size_slots
from server.latency.queue_model import Bounds
from tests.server.engine.loops import (
    Parent,
    engine_row,
    next_reply,
    parent_and_engine,
)
from tests.server.engine.processes import wait_until
from tome_core.schedule import Schedule

SIZE = (3, 32, 32)
SLOTS = 12
FOUR = Schedule.constant(4)


@dataclass
class HeldBatch:
    """A batch in flight until the test releases it.

    Attributes:
        fails: whether `collect` raises, as after an error of the device.
    """

    in_flight: BatchInFlight
    images: int
    released: threading.Event = field(default_factory=threading.Event)
    fails: bool = False

    def done(self) -> bool:
        return self.released.is_set()

    def collect(self) -> list[ImageOutput]:
        assert self.released.wait(30)
        if self.fails:
            raise RuntimeError("injected")
        return self.in_flight.collect()


class HoldingRunner(Runner):
    """Records every launched batch, and holds the first ``held`` of them in flight."""

    def __init__(self, model: LoadedModel, held: int) -> None:
        super().__init__(model, torch.device("cpu"))
        self.batches: list[HeldBatch] = []
        self.held = held

    def launch(self, images: Sequence[ImageInput]) -> Any:
        batch = HeldBatch(super().launch(images), len(images))
        if len(self.batches) >= self.held:
            batch.released.set()
        self.batches.append(batch)
        return batch


class Client:
    """An API process in small."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.channel = Channel(connection)

    def submit(self, *numbers: int, second: Sequence[int] = ()) -> None:
        """Send jobs that arrive together; the number is that of the slot, too.

        Args:
            second: those of them that are second passes.
        """
        now = time.monotonic()
        jobs = [
            Job(number, number, "tiny", (FOUR,), 3, now, is_second=number in second)
            for number in numbers
        ]
        self.connection.sendall(b"".join(map(pack, jobs)))

    def next_reply(self) -> BatchDone:
        return next_reply(self.channel)


@dataclass
class Engine:
    """The loop in a thread, its parent and clients, and all batches that it counted.

    Attributes:
        ended: what ended the loop, apart from being told to stop.
    """

    runner: HoldingRunner
    scheduler: Scheduler
    models: dict[str, EngineModel]
    loop_clients: Clients
    parent: Parent
    clients: list[Client]
    row: EngineRow
    thread: threading.Thread
    counted: list[BatchDone]
    ended: list[Exception]

    def submit(self, *numbers: int) -> None:
        """Send jobs of the first client that arrive together."""
        self.clients[0].submit(*numbers)

    def launch(self, *numbers: int, client: int = 0) -> None:
        """Send jobs that arrive together, and wait until they are launched together."""
        before = len(self.runner.batches)
        self.clients[client].submit(*numbers)
        wait_until(lambda: len(self.runner.batches) == before + 1)

    def release(self) -> None:
        """Let the batches in flight end."""
        for batch in self.runner.batches:
            batch.released.set()

    def next_reply(self) -> BatchDone:
        """The next reply to the first client."""
        return self.clients[0].next_reply()


@contextmanager
def running(tiny: LoadedModel, held: int, clients: int = 1) -> Iterator[Engine]:
    """An engine with so many clients, the first ``held`` batches of which are held in flight."""
    memory = create_memory()
    size_slots(memory, SLOTS, 3 * 32 * 32)
    slots = Slots(memory, SLOTS, 3 * 32 * 32)
    for slot in range(SLOTS):
        slots.view(slot, SIZE, np.uint8)[:] = slot
    runner = HoldingRunner(tiny, held)
    geometry = model_info(runner, ()).geometry
    calibration = Calibration(
        geometry, [Sample((FOUR,) * count, 1e-3 * count) for count in (1, 2, 4)]
    )
    scheduler = Scheduler(Bounds(4, 4), 1.0, {"tiny": calibration})
    row = engine_row()
    counted: list[BatchDone] = []
    ended: list[Exception] = []
    models = {"tiny": EngineModel(runner, calibration)}
    with ExitStack() as stack:
        parent, control = stack.enter_context(parent_and_engine())
        ends = [
            stack.enter_context(parent.attach(worker, small_buffer=True))
            for worker in range(clients)
        ]
        engine_side = Clients(control, scheduler)
        loop = Loop(engine_side, scheduler, models, slots, row, counted.append)

        def run() -> None:
            try:
                loop.run()
            except (ChannelClosed, BadMessage) as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            engine = Engine(
                runner,
                scheduler,
                models,
                engine_side,
                parent,
                list(map(Client, ends)),
                row,
                thread,
                counted,
                ended,
            )
            yield engine
        finally:
            engine.release()
            if not ended:
                parent.send(Stop())
            thread.join(30)
        assert not thread.is_alive()


def job_ids(reply: BatchDone) -> list[int]:
    return [outcome.id for outcome in reply.outcomes]

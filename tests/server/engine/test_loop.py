"""The loop on a made-up device: what is launched when, and which failures affect which jobs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.in_flight import BatchInFlight
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel
from server.engine.loop import EngineModel, Loop
from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.warmup import model_info
from server.ipc.channel import Channel, pack
from server.ipc.messages import BatchDone, Failure, Job, Stop
from server.ipc.shared_memory import HeartbeatPage, Slots, create_memory
from server.latency.queue_model import Bounds
from tome_core.schedule import Schedule

SIZE = (3, 32, 32)
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


@dataclass
class Engine:
    """The loop in a thread, and the other end of its channel."""

    runner: HoldingRunner
    connection: socket.socket
    channel: Channel
    page: HeartbeatPage

    def submit(self, *numbers: int) -> None:
        """Send jobs that arrive together."""
        jobs = [Job(number, number, "tiny", (FOUR,), 3, time.monotonic()) for number in numbers]
        self.connection.sendall(b"".join(map(pack, jobs)))

    def launch(self, *numbers: int) -> None:
        """Send jobs that arrive together, and wait until they are launched together."""
        before = len(self.runner.batches)
        self.submit(*numbers)
        wait_until(lambda: len(self.runner.batches) == before + 1)

    def next_reply(self) -> BatchDone:
        reply = self.channel.receive()
        assert isinstance(reply, BatchDone)
        return reply


@contextmanager
def running(tiny: LoadedModel, held: int) -> Iterator[Engine]:
    api_socket, engine_socket = socket.socketpair()
    memory = create_memory()
    slots = Slots(memory, 8, 3 * 32 * 32, create=True)
    for slot in range(8):
        slots.view(slot, SIZE, np.uint8)[:] = slot
    runner = HoldingRunner(tiny, held)
    geometry = model_info(runner, ()).geometry
    calibration = Calibration(
        geometry, [Sample((FOUR,) * count, 1e-3 * count) for count in (1, 2, 4)]
    )
    scheduler = Scheduler(Bounds(4, 4), 1.0, {"tiny": calibration})
    page = HeartbeatPage(create_memory("page", HeartbeatPage.SIZE))
    loop = Loop(
        Channel(engine_socket), scheduler, {"tiny": EngineModel(runner, calibration)}, slots, page
    )
    thread = threading.Thread(target=loop.run)
    thread.start()
    engine = Engine(runner, api_socket, Channel(api_socket), page)
    try:
        yield engine
    finally:
        for batch in runner.batches:
            batch.released.set()
        engine.channel.send(Stop())
        thread.join(30)
        api_socket.close()
        engine_socket.close()
    assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def job_ids(reply: BatchDone) -> list[int]:
    return [outcome.id for outcome in reply.outcomes]


def test_the_next_batch_is_launched_before_the_batch_in_flight_is_collected(
    tiny: LoadedModel,
) -> None:
    with running(tiny, held=3) as engine:
        engine.launch(0)
        launched_before_collect = []
        collect = engine.runner.batches[0].collect

        def collect_and_count() -> list[ImageOutput]:
            outputs = collect()
            launched_before_collect.append(len(engine.runner.batches))
            return outputs

        engine.runner.batches[0].collect = collect_and_count  # type: ignore[method-assign]
        engine.launch(1, 2)
        engine.submit(3)
        first, second = engine.runner.batches
        first.released.set()
        assert job_ids(engine.next_reply()) == [0]
        assert launched_before_collect == [2]  # no third batch while two are in flight
        wait_until(lambda: len(engine.runner.batches) == 3)
        second.released.set()
        assert job_ids(engine.next_reply()) == [1, 2]
        engine.runner.batches[2].released.set()
        assert job_ids(engine.next_reply()) == [3]


def test_outcomes_are_those_of_a_runner_alone(tiny: LoadedModel) -> None:
    expected = Runner(tiny, torch.device("cpu")).run(
        [ImageInput(np.full(SIZE, slot, np.uint8), FOUR, top_k=3) for slot in range(4)]
    )
    with running(tiny, held=1) as engine:
        engine.launch(0)
        engine.submit(1, 2, 3)
        engine.runner.batches[0].released.set()
        found: dict[int, Any] = {}
        while len(found) < 4:
            found |= {outcome.id: outcome for outcome in engine.next_reply().outcomes}
    for number, prediction in enumerate(expected):
        assert found[number].classes == prediction.classes
        assert found[number].scores == pytest.approx(prediction.scores, abs=1e-6)


def test_a_batch_that_fails_in_flight_runs_again_in_halves_and_does_not_affect_the_batch_ahead(
    tiny: LoadedModel,
) -> None:
    with running(tiny, held=2) as engine:
        engine.launch(0)
        engine.launch(1, 2, 3, 4)
        first, second = engine.runner.batches
        second.fails = True
        first.released.set()
        assert job_ids(engine.next_reply()) == [0]
        second.released.set()
        reply = engine.next_reply()
        assert job_ids(reply) == [1, 2, 3, 4] and reply.failures == ("error",)
        assert all(not outcome.failure for outcome in reply.outcomes)
        assert [batch.images for batch in engine.runner.batches] == [1, 4, 2, 2]


def test_an_image_that_fails_at_launch_fails_alone(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Runner.launch

    def raising(self: Runner, images: Sequence[ImageInput]) -> BatchInFlight:
        if any(image.pixels[0, 0, 0] == 2 for image in images):
            raise RuntimeError("injected")
        return launch(self, images)

    monkeypatch.setattr(Runner, "launch", raising)
    with running(tiny, held=1) as engine:
        engine.launch(0)
        engine.submit(1, 2, 3)
        engine.runner.batches[0].released.set()
        found: dict[int, Failure | None] = {}
        while len(found) < 4:
            found |= {outcome.id: outcome.failure for outcome in engine.next_reply().outcomes}
    assert found == {0: None, 1: None, 2: Failure.FAILED, 3: None}


def test_the_heartbeat_page_shows_the_batch_that_the_device_works_on(tiny: LoadedModel) -> None:
    with running(tiny, held=2) as engine:
        engine.launch(0)
        batch_started = engine.page.read().batch_started
        assert batch_started
        engine.launch(1)
        assert engine.page.read().batch_started == batch_started
        engine.runner.batches[0].released.set()
        engine.next_reply()
        wait_until(lambda: engine.page.read().batch_started > batch_started)
        engine.runner.batches[1].released.set()
        engine.next_reply()
    assert engine.page.read().batch_started == 0


def test_a_batch_that_ends_during_the_next_launch_does_not_shorten_the_time_of_that_batch(
    tiny: LoadedModel,
) -> None:
    """The device works on the next batch during its launch already, so its time starts there."""
    with running(tiny, held=1) as engine:
        launch = engine.runner.launch

        def launch_slowly(images: Sequence[ImageInput]) -> Any:
            if engine.runner.batches:  # during the second launch the device ends the first batch
                engine.runner.batches[0].released.set()
                time.sleep(0.2)
            return launch(images)

        engine.runner.launch = launch_slowly  # type: ignore[method-assign]
        engine.launch(0)
        engine.submit(1)
        first = engine.next_reply()
        second = engine.next_reply()
    assert job_ids(first) == [0] and job_ids(second) == [1]
    assert second.forward_seconds >= 0.2


def test_a_batch_after_one_that_failed_is_not_timed(tiny: LoadedModel) -> None:
    with running(tiny, held=2) as engine:
        engine.launch(0, 1)
        engine.launch(2)
        first, second = engine.runner.batches
        first.fails = True
        first.released.set()
        assert engine.next_reply().failures == ("error",)
        second.released.set()
        reply = engine.next_reply()
    assert job_ids(reply) == [2] and not reply.failures
    assert reply.predicted_seconds == reply.r0_seconds == 0

"""The loop on a device that computes when the test lets it: what is launched, when, and what fails
with what.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from server.engine.execution.in_flight import BatchInFlight
from server.engine.execution.prediction import Prediction
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel
from server.engine.loop import Loop, Served
from server.engine.scheduling.batch_builder import Bounds
from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.warmup import describe
from server.ipc.channel import Channel, pack
from server.ipc.heartbeat import HeartbeatPage
from server.ipc.messages import BatchDone, Job, Stop
from server.ipc.shared_memory import Slots, create_memory
from tome_core.schedule import Schedule

SIZE = (3, 32, 32)
FOUR = Schedule.constant(4)


@dataclass
class Pending:
    """A batch that is done when the test says so; ``fails`` raises what the device would have."""

    launched: BatchInFlight
    images: int
    released: threading.Event = field(default_factory=threading.Event)
    fails: bool = False

    def done(self) -> bool:
        return self.released.is_set()

    def collect(self) -> list[Prediction]:
        assert self.released.wait(30)
        if self.fails:
            raise RuntimeError("injected")
        return self.launched.collect()


class Slow(Runner):
    """Keeps every batch, in the order of their launches; the first ``held`` of them until they are
    released.
    """

    def __init__(self, model: LoadedModel, held: int) -> None:
        super().__init__(model, torch.device("cpu"))
        self.batches: list[Pending] = []
        self.held = held

    def launch(self, *arguments: Any) -> Any:
        pending = Pending(super().launch(*arguments), len(arguments[0]))
        if len(self.batches) >= self.held:
            pending.released.set()
        self.batches.append(pending)
        return pending


@dataclass
class Engine:
    """The loop in a thread, and the other end of its channel."""

    runner: Slow
    connection: socket.socket
    channel: Channel
    page: HeartbeatPage

    def submit(self, *numbers: int) -> None:
        """Jobs that arrive together."""
        jobs = [Job(number, number, "tiny", (FOUR,), 3, time.monotonic()) for number in numbers]
        self.connection.sendall(b"".join(map(pack, jobs)))

    def launch(self, *numbers: int) -> None:
        """Jobs that arrive together, and that are launched together when this returns."""
        before = len(self.runner.batches)
        self.submit(*numbers)
        until(lambda: len(self.runner.batches) == before + 1)

    def answered(self) -> BatchDone:
        batch = self.channel.receive()
        assert isinstance(batch, BatchDone)
        return batch


@contextmanager
def running(tiny: LoadedModel, held: int) -> Iterator[Engine]:
    ours, theirs = socket.socketpair()
    memory = create_memory()
    slots = Slots(memory, 8, 3 * 32 * 32, create=True)
    for slot in range(8):
        slots.view(slot, SIZE, np.uint8)[:] = slot
    runner = Slow(tiny, held)
    geometry = describe(runner, ()).geometry
    calibration = Calibration(
        geometry, [Sample((FOUR,) * count, 1e-3 * count) for count in (1, 2, 4)]
    )
    scheduler = Scheduler(Bounds(4, 4), 1.0, lambda model: calibration)
    page = HeartbeatPage(create_memory("page", HeartbeatPage.SIZE))
    loop = Loop(Channel(theirs), scheduler, {"tiny": Served(runner, calibration)}, slots, page)
    thread = threading.Thread(target=loop.run)
    thread.start()
    engine = Engine(runner, ours, Channel(ours), page)
    try:
        yield engine
    finally:
        for pending in runner.batches:
            pending.released.set()
        engine.channel.send(Stop())
        thread.join(30)
        ours.close()
        theirs.close()
    assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def ids(batch: BatchDone) -> list[int]:
    return [outcome.id for outcome in batch.outcomes]


def test_the_next_batch_is_launched_before_the_one_ahead_is_collected(tiny: LoadedModel) -> None:
    with running(tiny, held=3) as engine:
        engine.launch(0)
        engine.launch(1, 2)
        engine.submit(3)
        assert len(engine.runner.batches) == 2  # no third one is launched while two are in flight
        first, second = engine.runner.batches
        first.released.set()
        assert ids(engine.answered()) == [0]
        until(lambda: len(engine.runner.batches) == 3)
        second.released.set()
        assert ids(engine.answered()) == [1, 2]
        engine.runner.batches[2].released.set()
        assert ids(engine.answered()) == [3]


def test_answers_are_those_of_a_runner_alone(tiny: LoadedModel) -> None:
    expected = Runner(tiny, torch.device("cpu")).run(
        np.stack([np.full(SIZE, slot, np.uint8) for slot in range(4)]), [FOUR] * 4, [3] * 4
    )
    with running(tiny, held=1) as engine:
        engine.launch(0)
        engine.submit(1, 2, 3)
        engine.runner.batches[0].released.set()
        found: dict[int, Any] = {}
        while len(found) < 4:
            found |= {outcome.id: outcome for outcome in engine.answered().outcomes}
    for number, prediction in enumerate(expected):
        assert found[number].classes == prediction.classes
        assert found[number].scores == pytest.approx(prediction.scores, abs=1e-6)


def test_a_batch_that_fails_when_it_is_collected_runs_again_in_halves_and_the_next_one_is_unharmed(
    tiny: LoadedModel,
) -> None:
    with running(tiny, held=2) as engine:
        engine.launch(0)
        engine.launch(1, 2, 3, 4)
        first, second = engine.runner.batches
        second.fails = True
        first.released.set()
        assert ids(engine.answered()) == [0]
        second.released.set()
        answer = engine.answered()
        assert ids(answer) == [1, 2, 3, 4] and answer.failures == ("error",)
        assert all(not outcome.failure for outcome in answer.outcomes)
        assert [pending.images for pending in engine.runner.batches] == [1, 4, 2, 2]


def test_what_raises_at_launch_fails_alone(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Runner.launch

    def raising(self: Runner, pixels: np.ndarray, *arguments: Any) -> BatchInFlight:
        if (pixels[:, 0, 0, 0] == 2).any():
            raise RuntimeError("injected")
        return launch(self, pixels, *arguments)

    monkeypatch.setattr(Runner, "launch", raising)
    with running(tiny, held=1) as engine:
        engine.launch(0)
        engine.submit(1, 2, 3)
        engine.runner.batches[0].released.set()
        found: dict[int, str] = {}
        while len(found) < 4:
            found |= {outcome.id: outcome.failure for outcome in engine.answered().outcomes}
    assert found == {0: "", 1: "", 2: "failed", 3: ""}


def test_the_page_shows_the_batch_at_the_front(tiny: LoadedModel) -> None:
    with running(tiny, held=2) as engine:
        engine.launch(0)
        began = engine.page.read().began
        assert began
        engine.launch(1)
        assert engine.page.read().began == began
        engine.runner.batches[0].released.set()
        engine.answered()
        until(lambda: engine.page.read().began > began)
        engine.runner.batches[1].released.set()
        engine.answered()
    assert engine.page.read().began == 0


def test_a_batch_that_the_device_ended_during_the_next_launch_does_not_shorten_that_one(
    tiny: LoadedModel,
) -> None:
    """Else it would be timed from the end of its own launch, in which the device has worked on it
    already.
    """
    with running(tiny, held=1) as engine:
        launch = engine.runner.launch

        def slowly(*arguments: Any) -> Any:
            if engine.runner.batches:  # the second one: meanwhile the device ends the first
                engine.runner.batches[0].released.set()
                time.sleep(0.2)
            return launch(*arguments)

        engine.runner.launch = slowly  # type: ignore[method-assign]
        engine.launch(0)
        engine.submit(1)
        first = engine.answered()
        second = engine.answered()
    assert ids(first) == [0] and ids(second) == [1]
    assert second.forward_seconds >= 0.2


def test_what_follows_a_batch_that_failed_teaches_nothing(tiny: LoadedModel) -> None:
    with running(tiny, held=2) as engine:
        engine.launch(0, 1)
        engine.launch(2)
        first, second = engine.runner.batches
        first.fails = True
        first.released.set()
        assert engine.answered().failures == ("error",)
        second.released.set()
        answer = engine.answered()
    assert ids(answer) == [2] and not answer.failures
    assert answer.predicted_seconds == answer.r0_seconds == 0

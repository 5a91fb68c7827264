"""The loop on a made-up device: what is launched when, and which failures affect which jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.in_flight import BatchInFlight
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel
from server.ipc.messages import Failure
from tests.server.engine.held import FOUR, SIZE, job_ids, running
from tests.server.engine.processes import wait_until


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
        assert [batch.images for batch in engine.counted] == [1, 2, 1]


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


def test_the_board_shows_the_batch_that_the_device_works_on(tiny: LoadedModel) -> None:
    with running(tiny, held=2) as engine:
        engine.launch(0)
        batch_started = engine.row.heartbeat().batch_started
        assert batch_started
        engine.launch(1)
        assert engine.row.heartbeat().batch_started == batch_started
        engine.runner.batches[0].released.set()
        engine.next_reply()
        wait_until(lambda: engine.row.heartbeat().batch_started > batch_started)
        engine.runner.batches[1].released.set()
        engine.next_reply()
    assert engine.row.heartbeat().batch_started == 0


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


def test_at_r0_no_image_would_have_run_twice(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tiny, held=1) as engine:
        calibration = engine.models["tiny"].calibration
        monkeypatch.setattr(calibration, "r0_seconds", lambda *_: 8.0)
        engine.launch(0)
        engine.clients[0].submit(1, 2, 3, 4, second=[4])
        wait_until(lambda: len(engine.runner.batches) == 2)
        engine.release()
        assert engine.next_reply().r0_seconds == 8.0
        reply = engine.next_reply()
    assert job_ids(reply) == [1, 2, 3, 4]
    assert reply.r0_seconds == 6.0

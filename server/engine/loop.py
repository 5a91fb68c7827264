"""The engine's loop: read messages, schedule, launch, collect, reply. One thread, no locks.

On a GPU the next batch is launched before the batch in flight is collected, so that the device
never waits for the host. It is launched as late as that allows, so that jobs that arrive until then
can still join it. On a CPU a launch runs the whole forward pass, and the batch is done when it
returns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from server.engine.clients import Clients
from server.engine.device import errors
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.in_flight import BatchInFlight
from server.engine.execution.isolation import IsolationResult, run_isolated
from server.engine.execution.outcomes import batch_failures, outcomes, token_counts
from server.engine.execution.runner import Runner
from server.engine.scheduling.batch_limit import BatchLimit
from server.engine.scheduling.calibration import Calibration
from server.engine.scheduling.scheduler import ScheduledJob, Scheduler
from server.errors import DeviceLost
from server.ipc.board import EngineRow
from server.ipc.messages import BatchDone, Failure, Outcome
from server.ipc.shared_memory import Slots
from server.latency.cost import CostFeatures, batch_features

log = logging.getLogger("tome.engine")

# A launch begins this many times the duration of the last launch before the device needs the batch.
# The half in addition covers a launch that takes longer than the last one, and predictions that are
# too long. An earlier launch would leave later jobs less time to join the batch.
_LAUNCH_LEAD = 1.5
_POLL_SECONDS = 0.0001  # between two checks whether the device has finished


@dataclass(frozen=True)
class EngineModel:
    """A model that accepts jobs: its runner and its calibration."""

    runner: Runner
    calibration: Calibration


@dataclass(frozen=True)
class LaunchedBatch:
    """A batch that was launched, with what its reply needs.

    Attributes:
        in_flight: the batch on the device, or the exception that its launch raised.
        started: when the device began the batch, as far as the host knows.
        features: of the cost model.
        predicted: seconds that the batch should take.
        timed: whether ``started`` is known well enough to time the batch.
    """

    model: EngineModel
    batch: Sequence[ScheduledJob]
    in_flight: BatchInFlight | Exception
    started: float
    features: CostFeatures
    predicted: float
    timed: bool = True

    @property
    def done(self) -> bool:
        """Whether the batch can be collected without waiting."""
        return isinstance(self.in_flight, Exception) or self.in_flight.done()

    @property
    def expected_end(self) -> float:
        """When the device should finish the batch."""
        return self.started + self.predicted


class Loop:
    """Owns each job from its arrival to its outcome.

    Ends after it is told to stop, once no job is left (graceful shutdown).

    Args:
        clients: where jobs come from, with the same scheduler.
        row: where the loop shows which batch runs and how long it should take.
        on_batch: called with every batch that ran, before clients get their shares of it.
    """

    def __init__(
        self,
        clients: Clients,
        scheduler: Scheduler,
        models: Mapping[str, EngineModel],
        slots: Slots,
        row: EngineRow,
        on_batch: Callable[[BatchDone], None],
    ) -> None:
        self._clients = clients
        self._scheduler = scheduler
        self._models = models
        self._slots = slots
        self._row = row
        self._on_batch = on_batch
        self._limit = BatchLimit(scheduler.bounds.images)
        row.set_batch_limit(self._limit.current)
        self._current: LaunchedBatch | None = None  # the batch that the device works on
        self._launch_seconds = 0.0  # duration of the last launch on the host

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            ChannelClosed: the parent process has ended.
            BadMessage: it sent what is no message to an engine.
            DeviceLost: no batch can run any more; jobs in flight have no outcome.
        """
        try:
            while not self._clients.stopping or len(self._scheduler) or self._current:
                self._clients.receive(self._receive_timeout())
                self._run_next()
            self._clients.flush()
        finally:
            self._clients.close()

    def _run_next(self) -> None:
        """Reply for the batch in flight if it is done, and launch the next one if it is time."""
        if self._current and self._current.done:
            self._collect_and_reply(self._current, following=None)
        queue_empty = not len(self._scheduler)
        if self._current and (queue_empty or self._time_left()):
            return
        following = self._launch_next()
        if self._current and following:
            self._collect_and_reply(self._current, following)
        elif following:
            self._current = following

    def _receive_timeout(self) -> float | None:
        """Return the seconds to wait for messages; None: no limit."""
        has_queued = len(self._scheduler) > 0
        if not self._current:
            return 0.0 if has_queued or self._clients.stopping else None
        if self._current.done or (has_queued and not self._time_left()):
            return 0.0
        return _POLL_SECONDS

    def _time_left(self) -> float:
        """Return the seconds until the next launch has to begin for the device not to wait."""
        assert self._current is not None
        lead = _LAUNCH_LEAD * self._launch_seconds
        return max(0.0, self._current.expected_end - lead - time.monotonic())

    def _launch_next(self) -> LaunchedBatch | None:
        """Launch the next batch. Returns None if no job is left to run."""
        now = time.monotonic()
        start = now
        if self._current:
            start = max(now, self._current.expected_end)
        taken = self._scheduler.take_next(now, start)
        not_run = [Outcome(job.id, Failure.EXPIRED) for job in taken.expired]
        not_run += [Outcome(job.id, Failure.REFUSED) for job in taken.refused]
        if not_run:
            self._clients.reply(BatchDone("", tuple(not_run)))
        if not taken.batch:
            return None
        return self._launch_batch(taken.batch)

    def _launch_batch(self, batch: Sequence[ScheduledJob]) -> LaunchedBatch:
        """Launch ``batch``. An exception of the model is kept in the result, see `_collect`."""
        model = self._models[batch[0].job.model]
        cost_model = model.calibration.cost_model
        image_costs = [scheduled.image_cost for scheduled in batch]
        features = batch_features(image_costs, cost_model.recorded)
        predicted = cost_model.seconds(features)
        started = time.monotonic()
        if not self._current:
            self._row.begin_batch(started, predicted)
        in_flight: BatchInFlight | Exception
        try:
            in_flight = self._launch(model, batch)
        except DeviceLost:
            raise
        except Exception as error:  # handled after the batch ahead, when this one is collected
            in_flight = error
            if len(batch) > 1:
                # The frames of the traceback hold memory that the halves of the batch will need.
                in_flight = error.with_traceback(None)
        self._launch_seconds = time.monotonic() - started
        return LaunchedBatch(model, batch, in_flight, started, features, predicted)

    def _collect_and_reply(
        self,
        launched: LaunchedBatch,
        following: LaunchedBatch | None,
    ) -> None:
        """Collect ``launched``, the current batch, and reply. Then ``following`` is current."""
        was_done = launched.done
        result = run_isolated(partial(self._collect, launched), launched.batch)
        if isinstance(launched.in_flight, Exception):
            # The frames of the traceback hold what the failed run allocated, and a reference cycle
            # through this frame would keep them.
            launched.in_flight.__traceback__ = None
        now = time.monotonic()
        self._row.end_batch()
        if following:
            # The device began it when it finished the batch ahead, which may have been during the
            # launch. If the batch ahead ran again in parts, the time is not known.
            started = following.started if was_done else now
            following = replace(following, started=started, timed=not result.failures)
            self._row.begin_batch(started, following.predicted)
        self._current = following
        seconds = now - launched.started
        predicted_seconds, r0_seconds = self._learn_from(launched, result, seconds)
        reply = self._build_reply(launched, result, seconds, predicted_seconds, r0_seconds)
        self._on_batch(reply)
        self._clients.reply(reply)

    def _learn_from(
        self,
        launched: LaunchedBatch,
        result: IsolationResult,
        seconds: float,
    ) -> tuple[float, float]:
        """Update the batch limit and the calibration with a batch that took ``seconds``.

        Returns:
            The seconds that were predicted for the batch, and those that it would have taken at
            r=0; 0 where the time of the batch says nothing.
        """
        images = len(launched.batch)
        self._update_batch_limit(result, images)
        # A batch that failed and ran again in parts cannot be compared with a prediction.
        if not launched.timed or result.failures:
            return 0.0, 0.0
        calibration = launched.model.calibration
        r0_seconds = calibration.r0_seconds(launched.features, images, seconds)
        # At r=0 no image would have run twice.
        first_passes = sum(not scheduled.job.is_second for scheduled in launched.batch)
        r0_seconds *= first_passes / images
        calibration.observe(launched.features, seconds)
        return launched.predicted, r0_seconds

    def _build_reply(
        self,
        launched: LaunchedBatch,
        result: IsolationResult,
        seconds: float,
        predicted_seconds: float,
        r0_seconds: float,
    ) -> BatchDone:
        """Return the reply for a batch; the numbers are those of `_learn_from`."""
        batch = launched.batch
        counts = token_counts(launched.model.runner, batch)
        first_counts = counts[id(batch[0].schedule)]
        return BatchDone(
            model=batch[0].job.model,
            outcomes=outcomes(batch, result.answers, counts, launched.started),
            images=len(batch),
            tokens=len(batch) * first_counts[0],
            forward_seconds=seconds,
            predicted_seconds=predicted_seconds,
            r0_seconds=r0_seconds,
            failures=batch_failures(result),
        )

    def _update_batch_limit(self, result: IsolationResult, images: int) -> None:
        """Lower the limit if memory ran out for this batch, or raise it after many that fit."""
        if result.batch_too_large:
            changed = self._limit.out_of_memory(result.largest)
        elif Failure.OUT_OF_MEMORY in result.failures:
            changed = False  # an image that does not fit alone does not show how many fit
        else:
            changed = self._limit.succeeded(images)
        if changed:
            limit = self._limit.current
            log.warning("memory ran out lately: batches have at most %d images now", limit)
            self._scheduler.bounds = replace(self._scheduler.bounds, images=limit)
            self._row.set_batch_limit(limit)

    def _collect(
        self,
        launched: LaunchedBatch,
        batch: Sequence[ScheduledJob],
    ) -> list[ImageOutput]:
        """Return the predictions of the batch that was launched, or run a part of it again.

        Args:
            batch: the whole batch, or a part of it after the whole failed.

        Raises:
            DeviceLost: no batch can run any more.
            Exception: what the model raises.
        """
        model = launched.model
        if batch is not launched.batch:
            schedules = [scheduled.schedule for scheduled in batch]
            self._row.begin_batch(time.monotonic(), model.calibration.predict(schedules))
            in_flight = self._launch(model, batch)
        elif isinstance(launched.in_flight, Exception):
            raise launched.in_flight
        else:
            in_flight = launched.in_flight
        try:
            return in_flight.collect()
        except Exception as error:
            self._check_device(model.runner, error)
            raise

    def _launch(self, model: EngineModel, batch: Sequence[ScheduledJob]) -> BatchInFlight:
        """Start one forward pass. Raises as `_collect` does."""
        try:
            return model.runner.launch([self._image_input(model, one) for one in batch])
        except Exception as error:
            self._check_device(model.runner, error)
            raise

    def _image_input(self, model: EngineModel, scheduled: ScheduledJob) -> ImageInput:
        """Return the image of a job; its pixels stay in the slot."""
        job = scheduled.job
        transform = model.runner.model.transform
        pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
        if job.normalised or transform.dtype == "float32":
            pixels = self._slots.view(job.slot, transform.size, np.float32)
        else:
            pixels = self._slots.view(job.slot, transform.size, np.uint8)
        return ImageInput(pixels, scheduled.schedule, job.top_k, job.output_kind, job.label_set)

    def _check_device(self, runner: Runner, error: Exception) -> None:
        """Raise `DeviceLost` if no further call on the device can succeed."""
        if errors.is_lost(runner.device):
            raise DeviceLost(f"{runner.device} fails at everything from now on") from error

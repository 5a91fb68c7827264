"""The engine's loop: read messages, schedule, launch, collect, reply. One thread, no locks.

On a GPU one batch is launched before the one ahead of it is collected, so that the device never
waits for the host. It is cut as late as that allows: whatever arrives until then may still join it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from server.engine.device import errors
from server.engine.device.forward import Floats
from server.engine.execution.in_flight import BatchInFlight
from server.engine.execution.isolation import Isolated, run_isolated
from server.engine.execution.prediction import Prediction
from server.engine.execution.runner import Runner
from server.engine.scheduling.batch_limit import BatchLimit
from server.engine.scheduling.calibration import Calibration
from server.engine.scheduling.scheduler import ScheduledJob, Scheduler
from server.errors import DeviceLost
from server.ipc.channel import Channel
from server.ipc.heartbeat import HeartbeatPage
from server.ipc.messages import BatchDone, Cancel, FailureKind, Job, Outcome, Stop
from server.ipc.shared_memory import Slots
from server.latency.cost import Features

log = logging.getLogger("tome.engine")

# Launching a batch takes the host about as long as the last time; it begins this many times that
# long before the device needs it.
_LEAD = 1.5
_POLL_SECONDS = 0.0001  # between two looks whether the device is done


@dataclass(frozen=True)
class Served:
    """A model that takes jobs: how to run it, and how long that takes."""

    runner: Runner
    calibration: Calibration


@dataclass(frozen=True)
class InFlight:
    """A batch that was launched.

    Attributes:
        launched: what to collect, or why there is nothing.
        started: when the device turned to it, as far as the host knows.
        features: what its time is made of.
        predicted: seconds that it was expected to take.
        timed: whether it is known when the device turned to it.
    """

    served: Served
    batch: Sequence[ScheduledJob]
    launched: BatchInFlight | Exception
    started: float
    features: Features
    predicted: float
    timed: bool = True

    @property
    def done(self) -> bool:
        """Whether it can be collected without waiting."""
        return isinstance(self.launched, Exception) or self.launched.done()


class Loop:
    """Owns the jobs from their arrival to their outcome. Ends when told to stop and nothing is left to do.

    Args:
        page: where it shows what runs and how long that should take.
    """

    def __init__(
        self,
        channel: Channel,
        scheduler: Scheduler,
        models: Mapping[str, Served],
        slots: Slots,
        page: HeartbeatPage,
    ) -> None:
        self._channel = channel
        self._scheduler = scheduler
        self._models = models
        self._slots = slots
        self._page = page
        self._limit = BatchLimit(scheduler.bounds.images)
        page.set_batch_limit(self._limit.now)
        self._stopping = False
        self._ahead: InFlight | None = None
        self._launch_seconds = 0.0  # that the host took for the last batch

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            ChannelClosed: the API process is gone.
            DeviceLost: no batch can run any more; the jobs of those in flight have got no outcome.
        """
        while not self._stopping or len(self._scheduler) or self._ahead:
            self._read()
            if self._ahead and self._ahead.done:
                self._finish(self._ahead, following=None)
            if self._ahead and (self._time_left() or not len(self._scheduler)):
                continue
            following = self._launch_next()
            if self._ahead and following:
                self._finish(self._ahead, following)
            elif following:
                self._ahead = following

    def _read(self) -> None:
        """Take in what has arrived; wait for it only when there is nothing else to do."""
        cancelled = []
        for message in self._channel.receive_all(timeout=self._patience()):
            match message:
                case Job():
                    self._scheduler.add(message)
                case Cancel(id=job_id):
                    if self._scheduler.cancel(job_id):
                        cancelled.append((job_id, "cancelled"))
                case Stop():
                    self._stopping = True
        if cancelled:
            self._reply_unrun(cancelled)

    def _reply_unrun(self, failures: Sequence[tuple[int, str]]) -> None:
        self._channel.send(
            BatchDone("", tuple(Outcome(job_id, failure) for job_id, failure in failures))
        )

    def _patience(self) -> float | None:
        """Seconds to wait for messages, None: for ever."""
        waiting = len(self._scheduler) > 0
        if self._ahead:
            return 0.0 if self._ahead.done or (waiting and not self._time_left()) else _POLL_SECONDS
        return 0.0 if waiting or self._stopping else None

    def _time_left(self) -> float:
        """Seconds until the next batch has to be launched for the device not to wait."""
        assert self._ahead is not None
        end = self._ahead.started + self._ahead.predicted
        return max(0.0, end - _LEAD * self._launch_seconds - time.monotonic())

    def _launch_next(self) -> InFlight | None:
        """Launch what is due next; None if nothing is."""
        now = time.monotonic()
        ahead_ends = self._ahead.started + self._ahead.predicted if self._ahead else now
        step = self._scheduler.step(now, max(now, ahead_ends))
        unrun = [(job.id, "expired") for job in step.expired] + [
            (job.id, "refused") for job in step.refused
        ]
        if unrun:
            self._reply_unrun(unrun)
        if not step.batch:
            return None
        served = self._models[step.batch[0].job.model]
        features = served.calibration.features([placed.schedule for placed in step.batch])
        predicted = served.calibration.estimate.seconds(features)
        started = time.monotonic()
        if not self._ahead:
            self._page.begin(started, predicted)
        launched: BatchInFlight | Exception
        try:
            launched = self._launch(served, step.batch)
        except DeviceLost:
            raise
        except (
            Exception
        ) as error:  # it is dealt with when its turn comes, after the batch ahead of it
            # What the frames of a larger batch hold on to would be missing when it runs again in
            # halves.
            launched = error if len(step.batch) == 1 else error.with_traceback(None)
        self._launch_seconds = time.monotonic() - started
        return InFlight(served, step.batch, launched, started, features, predicted)

    def _finish(self, ahead: InFlight, following: InFlight | None) -> None:
        """Collect the batch at the front, reply, and let ``following`` be at the front."""
        was_done = ahead.done
        isolated = run_isolated(
            partial(self._collect, ahead), ahead.batch, errors.free_memory, errors.kind_of
        )
        if isinstance(ahead.launched, Exception):
            # Its frames hold on to what the failed run had allocated, and it is held in a circle
            # with ours.
            ahead.launched.__traceback__ = None
        now = time.monotonic()
        self._page.end()
        if following:
            # The device has turned to it when it was done with the one ahead, which may have been
            # while it was being launched; and if that one ran again in parts, nobody knows when.
            started = following.started if was_done else now
            following = replace(following, started=started, timed=not isolated.kinds)
            self._page.begin(started, following.predicted)
        self._ahead = following
        self._channel.send(self._summary(ahead, isolated, now - ahead.started))

    def _summary(self, ran: InFlight, isolated: Isolated[Prediction], seconds: float) -> BatchDone:
        """Learn from a batch that is done, and tell of it."""
        batch = ran.batch
        calibration = ran.served.calibration
        runner = ran.served.runner
        self._learn(isolated, len(batch))
        # Most images of a batch share a few schedule objects: comparing identities is cheaper than
        # comparing schedules.
        schedules = {id(placed.schedule): placed.schedule for placed in batch}
        counts = {key: runner.tokens(schedule) for key, schedule in schedules.items()}
        outcomes = tuple(
            [
                outcome(placed, answer, counts[id(placed.schedule)][-1], ran.started)
                for placed, answer in zip(batch, isolated.answers, strict=True)
            ]
        )
        # A batch that failed and ran again in parts has no counterpart to be compared with.
        whole = ran.timed and not isolated.kinds
        unmerged = calibration.unmerged(ran.features, len(batch), seconds) if whole else 0.0
        if whole:
            calibration.observe(ran.features, seconds)
        nan = any(
            isinstance(answer, Prediction) and not answer.finite for answer in isolated.answers
        )
        return BatchDone(
            model=batch[0].job.model,
            outcomes=outcomes,
            images=len(batch),
            tokens=len(batch) * counts[id(batch[0].schedule)][0],
            forward_seconds=seconds,
            predicted_seconds=ran.predicted if whole else 0.0,
            r0_seconds=unmerged,
            failures=(*sorted(isolated.kinds), *(["nan"] if nan else [])),
            estimate=calibration.estimate,
        )

    def _learn(self, isolated: Isolated[Prediction], images: int) -> None:
        """Take smaller batches from now on if memory ran out for this one, and larger ones again after a while."""
        if isolated.ran_out_together:
            changed = self._limit.ran_out(isolated.largest)
        else:
            # An image that does not fit alone says nothing of how many fit.
            changed = "out-of-memory" not in isolated.kinds and self._limit.went_well(images)
        if changed:
            log.warning(
                "memory ran out lately: batches have at most %d images now", self._limit.now
            )
            self._scheduler.bounds = replace(self._scheduler.bounds, images=self._limit.now)
            self._page.set_batch_limit(self._limit.now)

    def _collect(self, ahead: InFlight, batch: Sequence[ScheduledJob]) -> list[Prediction]:
        """What the batch that was launched gave; of a part of it, which is run anew after it failed, what that gives.

        Raises what the model raises, or `DeviceLost` where nothing else can follow.
        """
        if batch is not ahead.batch:
            schedules = [placed.schedule for placed in batch]
            self._page.begin(time.monotonic(), ahead.served.calibration.predict(schedules))
            launched = self._launch(ahead.served, batch)
        elif isinstance(ahead.launched, Exception):
            raise ahead.launched
        else:
            launched = ahead.launched
        try:
            return launched.collect()
        except Exception as error:
            self._check_device(ahead.served.runner, error)
            raise

    def _launch(self, served: Served, batch: Sequence[ScheduledJob]) -> BatchInFlight:
        """Start one forward pass. Raises what the model raises, or `DeviceLost` where nothing else can follow."""
        runner = served.runner
        jobs = [placed.job for placed in batch]
        try:
            pixels = runner.room(len(jobs))
            self._slots.gather_into([job.slot for job in jobs], pixels)
            top_k = [job.top_k for job in jobs]
            wants = [job.want for job in jobs]
            schedules = [placed.schedule for placed in batch]
            return runner.launch(pixels, schedules, top_k, wants, self._floats(jobs, runner))
        except Exception as error:
            self._check_device(runner, error)
            raise

    def _check_device(self, runner: Runner, error: Exception) -> None:
        if errors.is_lost(runner.device):
            raise DeviceLost(f"{runner.device} fails at everything from now on") from error

    def _floats(self, jobs: Sequence[Job], runner: Runner) -> Floats | None:
        """The images among ``jobs`` that came normalised."""
        rows = [row for row, job in enumerate(jobs) if job.normalised]
        if not rows:
            return None
        slots = [jobs[row].slot for row in rows]
        return Floats(rows, self._slots.gather(slots, runner.model.transform.size, np.float32))


def outcome(
    placed: ScheduledJob, answer: Prediction | FailureKind, tokens_out: int, started: float
) -> Outcome:
    """What to tell the caller of a job. An answer with NaN in it is no answer."""
    job, schedule = placed
    if answer == "out-of-memory":
        return Outcome(job.id, "out-of-memory")
    if not isinstance(answer, Prediction) or not answer.finite:
        return Outcome(job.id, "failed")
    scores, classes, _, features, source = answer
    # By position: names would take as long as all else here, for every image.
    return Outcome(
        job.id, "", schedule, scores, classes, tokens_out, started - job.submitted, features, source
    )

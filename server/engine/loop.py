"""The engine's loop: read messages, schedule, run, reply. One thread, no locks, nothing waits but for messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from server.channel import Channel
from server.engine import faults
from server.engine.batch_limit import BatchLimit
from server.engine.calibration import Calibration
from server.engine.forward import Floats
from server.engine.isolation import Isolated, Kind, run_isolated
from server.engine.runner import Prediction, Runner
from server.engine.scheduler import Placed, Scheduler
from server.errors import DeviceLost
from server.messages import BatchDone, Cancel, Job, Outcome, Stop
from server.pulse import PulsePage
from server.slots import Slots

log = logging.getLogger("tome.engine")


@dataclass(frozen=True)
class Served:
    """A model that takes jobs: how to run it, and how long that takes."""

    runner: Runner
    calibration: Calibration


class Loop:
    """Owns the jobs from their arrival to their outcome. Ends when told to stop and nothing is left to do.

    Args:
        page: where it shows what runs and how long that should take.
    """

    def __init__(
        self, channel: Channel, scheduler: Scheduler, models: Mapping[str, Served], slots: Slots, page: PulsePage
    ) -> None:
        self._channel, self._scheduler, self._models, self._slots = channel, scheduler, models, slots
        self._page = page
        self._limit = BatchLimit(scheduler.bounds.images)
        page.set_batch_limit(self._limit.now)
        self._stopping = False

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            ChannelClosed: the API process is gone.
            DeviceLost: no batch can run any more; the jobs of this one have got no outcome.
        """
        while not self._stopping or len(self._scheduler):
            self._read()
            step = self._scheduler.step(time.monotonic())
            unrun = [(job.id, "expired") for job in step.expired] + [(job.id, "refused") for job in step.refused]
            if unrun:
                self._reply_unrun(unrun)
            if step.batch:
                self._channel.send(self._run(step.batch))

    def _read(self) -> None:
        """Take in what has arrived; wait for it only when there is nothing to run."""
        idle = not len(self._scheduler) and not self._stopping
        cancelled = []
        for message in self._channel.receive_all(timeout=None if idle else 0):
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
        self._channel.send(BatchDone("", tuple(Outcome(job_id, failure) for job_id, failure in failures)))

    def _run(self, batch: Sequence[Placed]) -> BatchDone:
        model, schedules = batch[0].job.model, [placed.schedule for placed in batch]
        served = self._models[model]
        calibration = served.calibration
        predicted = calibration.predict(schedules)
        started = time.monotonic()
        isolated = run_isolated(partial(self._attempt, served), batch, faults.free_memory, faults.kind_of)
        seconds = time.monotonic() - started
        self._learn(isolated, len(batch))
        counts = [served.runner.tokens(schedule) for schedule in schedules]
        outcomes = tuple(
            outcome(placed, answer, tokens[-1], started)
            for placed, answer, tokens in zip(batch, isolated.answers, counts, strict=True)
        )
        # A batch that failed and ran again in parts has no counterpart to be compared with.
        whole = not isolated.kinds
        unmerged = calibration.unmerged(schedules, seconds) if whole else 0.0
        if whole:
            calibration.observe(schedules, seconds)
        nan = any(isinstance(answer, Prediction) and not answer.finite for answer in isolated.answers)
        return BatchDone(
            model=model,
            outcomes=outcomes,
            images=len(batch),
            tokens=sum(tokens[0] for tokens in counts),
            forward_seconds=seconds,
            predicted_seconds=predicted if whole else 0.0,
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
            log.warning("memory ran out lately: batches have at most %d images now", self._limit.now)
            self._scheduler.bounds = replace(self._scheduler.bounds, images=self._limit.now)
            self._page.set_batch_limit(self._limit.now)

    def _attempt(self, served: Served, batch: Sequence[Placed]) -> list[Prediction]:
        """One forward pass. Raises what the model raises, or `DeviceLost` where nothing else can follow."""
        runner, schedules = served.runner, [placed.schedule for placed in batch]
        self._page.begin(time.monotonic(), served.calibration.predict(schedules))
        try:
            jobs = [placed.job for placed in batch]
            pixels = self._slots.gather([job.slot for job in jobs], runner.model.transform.size, np.uint8)
            top_k, wants = [job.top_k for job in jobs], [job.want for job in jobs]
            return runner.run(pixels, schedules, top_k, wants, self._floats(jobs, runner))
        except Exception as error:
            if faults.is_lost(runner.device):
                raise DeviceLost(f"{runner.device} fails at everything from now on") from error
            raise
        finally:
            self._page.end()

    def _floats(self, jobs: Sequence[Job], runner: Runner) -> Floats | None:
        """The images among ``jobs`` that came normalised."""
        rows = [row for row, job in enumerate(jobs) if job.normalised]
        if not rows:
            return None
        slots = [jobs[row].slot for row in rows]
        return Floats(rows, self._slots.gather(slots, runner.model.transform.size, np.float32))


def outcome(placed: Placed, answer: Prediction | Kind, tokens_out: int, started: float) -> Outcome:
    """What to tell the caller of a job. An answer with NaN in it is no answer."""
    job = placed.job
    if answer == "out-of-memory":
        return Outcome(job.id, "out-of-memory")
    if not isinstance(answer, Prediction) or not answer.finite:
        return Outcome(job.id, "failed")
    return Outcome(
        id=job.id,
        schedule=placed.schedule,
        scores=answer.scores,
        classes=answer.classes,
        tokens_out=tokens_out,
        queue_seconds=started - job.submitted,
        features=answer.features,
        source=answer.source,
    )

"""The engine's loop: read messages, schedule, run, reply. One thread, no locks, nothing waits but for messages."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.channel import Channel
from server.engine.runner import Prediction, Runner
from server.engine.scheduler import Scheduler
from server.engine.warmup import Baseline
from server.messages import BatchDone, Cancel, Job, Outcome, Stop
from server.slots import Slots

log = logging.getLogger("tome.engine")


@dataclass(frozen=True)
class Served:
    """A model that takes jobs: how to run it, and what its batches would take without merging."""

    runner: Runner
    baseline: Baseline


class Loop:
    """Owns the jobs from their arrival to their outcome. Ends when told to stop and nothing is left to do."""

    def __init__(self, channel: Channel, scheduler: Scheduler, models: Mapping[str, Served], slots: Slots) -> None:
        self._channel, self._scheduler, self._models, self._slots = channel, scheduler, models, slots
        self._stopping = False

    def run(self) -> None:
        """Serve until stopped. Raises `ChannelClosed` when the API process is gone."""
        while not self._stopping or len(self._scheduler):
            self._read()
            step = self._scheduler.step(time.monotonic())
            if step.expired:
                self._reply_unrun([(job.id, "expired") for job in step.expired])
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

    def _run(self, jobs: Sequence[Job]) -> BatchDone:
        served = self._models[jobs[0].model]
        started = time.monotonic()
        predictions = run_isolated(served.runner, self._slots, jobs)
        seconds = time.monotonic() - started
        counts = [served.runner.tokens(job.schedule) for job in jobs]
        return BatchDone(
            model=jobs[0].model,
            outcomes=tuple(
                outcome(job, prediction, tokens[-1], started)
                for job, prediction, tokens in zip(jobs, predictions, counts, strict=True)
            ),
            images=len(jobs),
            tokens=sum(tokens[0] for tokens in counts),
            forward_seconds=seconds,
            # A batch that failed and ran again in parts has no counterpart to be compared with.
            r0_seconds=served.baseline(len(jobs)) if None not in predictions else 0.0,
            resident_bytes=resident_bytes(),
        )


def run_isolated(runner: Runner, slots: Slots, jobs: Sequence[Job]) -> list[Prediction | None]:
    """Run ``jobs`` together; if that fails, run each half alone, down to the one that makes it fail: None."""
    try:
        pixels = slots.gather([job.slot for job in jobs], runner.model.transform.size)
        schedules, top_k, wants = zip(*((job.schedule, job.top_k, job.want) for job in jobs), strict=True)
        return list(runner.run(pixels, schedules, top_k, wants))
    except Exception:  # whatever the model raises concerns this batch alone
        if len(jobs) == 1:
            log.exception("the model %s failed on one image", jobs[0].model)
            return [None]
        middle = len(jobs) // 2
        return run_isolated(runner, slots, jobs[:middle]) + run_isolated(runner, slots, jobs[middle:])


def outcome(job: Job, prediction: Prediction | None, tokens_out: int, started: float) -> Outcome:
    """What to tell the caller of ``job``. An answer with NaN in it is no answer."""
    if prediction is None or not prediction.finite:
        return Outcome(job.id, "failed")
    return Outcome(
        id=job.id,
        scores=prediction.scores,
        classes=prediction.classes,
        tokens_out=tokens_out,
        queue_seconds=started - job.submitted,
        features=prediction.features,
        source=prediction.source,
    )


def resident_bytes() -> int:
    """Memory of this process now, from /proc; its peak where there is no /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Jobs and schedulers of a made-up model, whose times are easy to compute in the head."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.scheduling.options import Option
from server.engine.scheduling.scheduler import ScheduledJob, Scheduler
from server.ipc.messages import Job
from server.latency.cost import CostFeatures, CostModel, ImageCost
from server.latency.queue_model import Bounds
from tome_core.schedule import Schedule

LEVELS = tuple(Schedule.constant(r) for r in (0, 4, 8, 16))


class MadeUpModel:
    """An image takes 0.1 s at r=0, 0.08 s at 4, 0.06 s at 8, and 0.02 s at 16.

    Args:
        overhead: seconds of a batch besides its images.
    """

    def __init__(self, overhead: float = 0.0, margin: float = 0.0) -> None:
        coefficients = CostFeatures(host=overhead, tokens=1.0)
        self.cost_model = CostModel(coefficients, margin=margin)

    def option(self, schedule: Schedule) -> Option:
        share = relative_flops(schedule)
        return Option(schedule, ImageCost(share / 10, 0.0, 0.0, relative_flops=share))


def relative_flops(schedule: Schedule) -> float:
    return 1 - 0.05 * schedule.counts[0]


def make_job(
    number: int,
    submitted: float = 0.0,
    deadline: float | None = None,
    model: str = "m",
    choices: tuple[Schedule, ...] = LEVELS[:1],
) -> Job:
    return Job(
        id=number,
        slot=number,
        model=model,
        choices=choices,
        top_k=1,
        submitted=submitted,
        deadline=deadline,
    )


def make_scheduler(
    *jobs: Job,
    max_batch: int = 4,
    target: float = 1.0,
    max_r0_images: float = float("inf"),
    model: MadeUpModel | None = None,
) -> Scheduler:
    model = model or MadeUpModel()
    models = dict.fromkeys("abm", model)
    scheduler = Scheduler(Bounds(max_batch, max_r0_images), target, models)
    for job in jobs:
        scheduler.add(job)
    return scheduler


def job_ids(jobs: Sequence[Job | ScheduledJob]) -> list[int]:
    ids = []
    for job in jobs:
        if isinstance(job, ScheduledJob):
            job = job.job
        ids.append(job.id)
    return ids


def used_r(batch: Sequence[ScheduledJob]) -> list[int]:
    """Return the r of each job in ``batch``."""
    return [scheduled.schedule.counts[0] for scheduled in batch]

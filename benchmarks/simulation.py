"""`make simulate`: r=auto under load, with the server's own scheduler on a simulated device.

A discrete-event simulation. Images arrive, are admitted or refused as the API does, wait, are cut
into batches and get their schedules from `server.engine.scheduling.scheduler`; only the device is
made up: a batch takes what a cost model says, with noise, outliers and a second user of the machine
who comes and goes. The scheduler knows of the device what its warm-up and its own batches have
shown. Writes CSV and Markdown.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from server.catalog.entries import BUNDLED
from server.catalog.profiles import read_accuracies
from server.engine.scheduling.adaptive_r import AdaptiveR
from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.queue_forecast import CostModels, QueuedJob
from server.engine.scheduling.scheduler import Policy, Scheduler
from server.engine.warmup import calibration_batches
from server.ipc.messages import Job
from server.latency.cost import CostFeatures, CostModel, Geometry, batch_features
from server.latency.queue_model import Bounds
from server.latency.queueing import WorkEstimate, completion_seconds
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule
from tome_load.arrivals import Arrivals, arrivals

MODEL = "vit-s"
LEVELS = (0, 4, 8, 11, 13, 16)
# ViT-S/16 at 224: width 384, 12 blocks of 6 heads, 1000 classes; MACs as `tome_core.cost` counts
# them.
VIT_S = Geometry(
    tokens=197,
    prefix=1,
    depth=12,
    cost=Cost(
        196 * 768 * 384 + 384 * 1000,
        (BlockCost(4 * 384 * 384, 8 * 384 * 384, 2 * 384, 64),) * 12,
        prefix=1,
    ),
)
# About what a warm-up of ViT-S finds on 2 cores in bfloat16; only the ratios matter here.
DEVICE = CostFeatures(host=0.005, groups=0.0005, tokens=0.0026, pairs=0.0086)
BOUNDS = Bounds(images=32, max_r0_images=32)
WINDOW = 5.0
KINDS: tuple[Arrivals, ...] = ("poisson", "bursty")


@dataclass
class Device:
    """Takes batches; never tells how long before they are over.

    Attributes:
        noise: standard deviation of the logarithm of a batch's time.
        outliers: share of the batches that take three times as long.
        shared: how many times longer all takes in every second half minute, when someone else uses
            the machine.
    """

    random: random.Random
    noise: float = 0.06
    outliers: float = 0.005
    shared: float = 1.15

    def seconds(self, batch: CostFeatures, now: float) -> float:
        """Of a batch that begins at ``now``."""
        factor = self.random.lognormvariate(0, self.noise) * (
            3 if self.random.random() < self.outliers else 1
        )
        return CostModel(DEVICE).seconds(batch) * factor * (self.shared if now % 60 >= 30 else 1)


def capacity(r: int) -> float:
    """Images/s of full batches at ``r`` on the undisturbed device."""
    return BOUNDS.images / CostModel(DEVICE).uniform_batch_seconds(
        VIT_S.image_cost(Schedule.constant(r)), BOUNDS.images
    )


@dataclass
class PerBatch:
    """One r per batch, in the manner of OTAS (arXiv 2401.05031), adapted to the arrival rate.

    It is the smallest r whose capacity is above the rate at which images arrived in the last
    seconds.
    """

    window: float = 2.0
    _seen: dict[int, float] = field(default_factory=dict)

    def work_limit(
        self, queue: Sequence[QueuedJob], now: float, bounds: Bounds, of: CostModels
    ) -> float:
        """See `server.engine.scheduling.scheduler.Policy`."""
        self._seen.update((waiting.job.id, waiting.job.submitted) for waiting in queue)
        self._seen = {
            number: when for number, when in self._seen.items() if when > now - self.window
        }
        rate = len(self._seen) / self.window
        cost_model = of(MODEL)
        for option in queue[0].options:
            seconds = cost_model.uniform_batch_seconds(option.image_cost, bounds.images)
            if rate * seconds < bounds.images:
                break
        return option.image_cost.relative_flops


@dataclass(frozen=True)
class Contender:
    """A way to serve: the levels that a request leaves to the server, and who chooses from them."""

    name: str
    levels: tuple[int, ...]
    policy: Callable[[], Policy] = AdaptiveR


CONTENDERS = (
    Contender("r=0", (0,)),
    Contender("r=16", (16,)),
    Contender("per batch", LEVELS, PerBatch),
    Contender("auto", LEVELS),
)
ADAPTIVE = ("per batch", "auto")  # those whose r is not fixed


@dataclass
class Tally:
    """What became of the images of one run.

    Attributes:
        used: when each image in time was answered, and its r.
        errors: of the predictions, as shares of what the batches took.
    """

    arrived: int = 0
    refused: int = 0
    late: int = 0
    used: list[tuple[float, int]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def mean_r(self) -> float:
        """Of the images in time."""
        return statistics.fmean(r for _, r in self.used) if self.used else 0.0

    def steps(self, until: float, skip: float = 2 * WINDOW) -> list[float]:
        """Largest change of the mean r between adjacent windows of 5 s, up to ``until``."""
        windows: dict[int, list[int]] = {}
        for when, r in self.used:
            if skip <= when < until // WINDOW * WINDOW:
                windows.setdefault(int(when / WINDOW), []).append(r)
        means = {number: statistics.fmean(values) for number, values in windows.items()}
        return [
            abs(means[number + 1] - mean) for number, mean in means.items() if number + 1 in means
        ]


def simulate(
    contender: Contender,
    times: Sequence[float],
    deadlines: Sequence[float],
    seed: int = 0,
    device: Device | None = None,
) -> Tally:
    """Serve images that arrive at ``times``, each with a random one of ``deadlines`` (s)."""
    source = random.Random(seed)
    tally = Tally(arrived=len(times))
    device = device or Device(random.Random(seed + 1))
    warmup = [
        tuple(kind)
        for kind in calibration_batches([Schedule.constant(r) for r in LEVELS], BOUNDS.images)
    ]
    taken_each = [
        device.seconds(batch_features([VIT_S.image_cost(one) for one in kind]), 0.0)
        for kind in warmup
    ]
    calibration = Calibration(
        VIT_S, [Sample(kind, seconds) for kind, seconds in zip(warmup, taken_each, strict=True)]
    )
    scheduler = Scheduler(BOUNDS, deadlines[0], {MODEL: calibration}, contender.policy())
    choices = tuple(map(Schedule.constant, contender.levels))
    fastest = VIT_S.image_cost(choices[-1])
    coming = [(when, when + source.choice(deadlines)) for when in times]
    queued_work: dict[int, WorkEstimate] = {}  # of all jobs inside
    clock = 0.0
    began = 0.0
    predicted = 0.0
    place = 0

    def admit(now: float, due: float) -> None:
        work = WorkEstimate(MODEL, fastest, due)
        ahead = [one for one in queued_work.values() if one.due <= due]
        done = min(now - began, predicted)
        if (
            completion_seconds(work, ahead, done, {MODEL: calibration.cost_model}, BOUNDS.images)
            > due - now
        ):
            tally.refused += 1
            return
        queued_work[place] = work
        scheduler.add(Job(place, 0, MODEL, choices, 1, now, due))

    while place < len(coming) or len(scheduler):
        taken_jobs = scheduler.take_next(clock)
        tally.late += len(taken_jobs.expired)
        tally.refused += len(taken_jobs.refused)
        for job in (*taken_jobs.expired, *taken_jobs.refused):
            del queued_work[job.id]
        schedules = [placed.schedule for placed in taken_jobs.batch]
        if schedules:
            began = clock
            predicted = calibration.predict(schedules)
            taken = device.seconds(calibration.features(schedules), clock)
            clock += taken
        elif place < len(coming):
            began = 0.0
            predicted = 0.0
            clock = max(clock, coming[place][0])
        while place < len(coming) and coming[place][0] <= clock:
            admit(*coming[place])
            place += 1
        if schedules:
            tally.errors.append(abs(predicted - taken) / taken)
            calibration.observe(calibration.features(schedules), taken)
        for placed in taken_jobs.batch:
            del queued_work[placed.job.id]
            if placed.job.deadline is not None and clock <= placed.job.deadline:
                tally.used.append((clock, placed.schedule.counts[0]))
            else:
                tally.late += 1
    return tally


@dataclass(frozen=True)
class Row:
    """One line of the table; shares are of all images that arrived.

    Attributes:
        load: arrivals by the capacity at r=0.
        accuracy: expected, of the images in time, percent.
        step_r: the largest difference of the mean r between windows of 5 s that follow each other.
    """

    arrivals: str
    load: float
    contender: str
    in_time: float
    late: float
    refused: float
    goodput: float
    mean_r: float
    accuracy: float
    step_r: float
    median_error: float

    @classmethod
    def of(cls, tally: Tally, seconds: float, accuracy: dict[int, float], **what: Any) -> Row:
        """From what became of the images in ``seconds``."""
        return cls(
            in_time=len(tally.used) / tally.arrived,
            late=tally.late / tally.arrived,
            refused=tally.refused / tally.arrived,
            goodput=len(tally.used) / seconds,
            mean_r=tally.mean_r(),
            accuracy=statistics.fmean(accuracy[r] for _, r in tally.used) if tally.used else 0.0,
            step_r=max(tally.steps(seconds), default=0.0),
            median_error=statistics.median(tally.errors),
            **what,
        )


def run(args: argparse.Namespace, accuracy: dict[int, float]) -> Iterator[Row]:
    """Every kind of arrivals, load and contender."""
    batch = BOUNDS.images / capacity(16)
    for kind in KINDS:
        for load in args.loads:
            times = arrivals(kind, load * capacity(0), random.Random(args.seed))
            coming = list(itertools.takewhile(lambda when: when < args.seconds, times))
            for contender in CONTENDERS:
                tally = simulate(
                    contender, coming, [batch * one for one in args.deadlines], args.seed
                )
                what = {"arrivals": kind, "load": load, "contender": contender.name}
                yield Row.of(tally, args.seconds, accuracy, **what)


def markdown(rows: Sequence[Row]) -> str:
    """The table: a line per kind of arrivals and load, with all contenders side by side."""
    names = [contender.name for contender in CONTENDERS]
    titles = [*(f"{name}, in time" for name in names), *(f"{name}, mean r" for name in ADAPTIVE)]
    lines = [
        f"| arrivals | load | {' | '.join(titles)} |",
        f"| --- | --- |{' --- |' * len(titles)}",
    ]
    cases = itertools.groupby(rows, key=lambda row: (row.arrivals, row.load))
    for (kind, load), case in cases:
        by_name = {row.contender: row for row in case}
        shares = [f"{by_name[name].in_time:.1%}" for name in names]
        means = [f"{by_name[name].mean_r:.1f}" for name in ADAPTIVE]
        lines.append(f"| {kind} | {load:g} | {' | '.join(shares + means)} |")
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], folder: Path) -> None:
    """``simulation.csv`` and ``simulation.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [item.name for item in fields(Row)]
    with (folder / "simulation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)
    (folder / "simulation.md").write_text(markdown(rows), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, write, print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--loads",
        type=float,
        nargs="+",
        default=[0.5, 0.9, 1.2, 1.5, 2, 3, 5],
        help="by r=0 capacity",
    )
    parser.add_argument(
        "--deadlines", type=float, nargs="+", default=[10], help="in times of a full batch at r=16"
    )
    parser.add_argument("--seconds", type=float, default=60, help="of arrivals")
    parser.add_argument("--seed", type=int, default=0)
    profile = BUNDLED.with_name("fashion-mnist.profile.json")
    parser.add_argument(
        "--profile", type=Path, default=profile, help="accuracy by r; default: the bundled model's"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder for what is written"
    )
    args = parser.parse_args(arguments)
    found = read_accuracies(args.profile)
    rows = list(run(args, {r: found[str(r)] for r in LEVELS}))
    write(rows, args.out)
    Console(width=None if Console().is_terminal else 160).print(Markdown(markdown(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m benchmarks.host`: host-side microseconds of the engine's thread per batch.

A GPU is done with a batch of 128 images within some milliseconds, and one thread reads the jobs,
schedules, predicts, launches, collects, learns and replies. Here it does so with the server's own
loop, scheduler, calibration and messages, over a real socket pair; only the device is made up. It
computes nothing, a batch takes what a cost model of ViT-B on a large GPU says, and no pixels are
copied. The queue is filled up again before each batch. Times are medians of many batches. ``cpu``
is the processor's time for all, which other programs on the machine do not stretch, and a mean: in
it is what only some batches need, like a new fit of the coefficients.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.results import about
from server.allocator import freeze_live_objects
from server.engine.clients import Clients
from server.engine.device.cuda_graphs import buckets
from server.engine.device.readout import Readout
from server.engine.execution.image_input import ImageInput
from server.engine.execution.in_flight import BatchInFlight
from server.engine.loop import EngineModel, Loop
from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.warmup import graph_calibration_batches
from server.ipc.board import Board, BoardSize
from server.ipc.channel import Channel
from server.ipc.control import Attach
from server.ipc.messages import BatchDone, Job
from server.ipc.packing import pack
from server.latency.cost import CostFeatures, CostModel, Geometry, RecordedGraphs, batch_features
from server.latency.queue_model import Bounds
from tome_core import Outputs
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

# ViT-B/16 at 224: width 768, 12 blocks of 12 heads, 1000 classes.
VIT_B = Geometry(
    197, 1, 12, Cost(116_000_000, (BlockCost(2_359_296, 4_718_592, 1_536, 64),) * 12, prefix=1)
)
LEVELS = tuple(Schedule.constant(r) for r in (0, 4, 8, 12, 16))
# About what a large GPU needs in bfloat16: 9 ms for 128 images at r=0.
DEVICE = CostFeatures(
    host=0.001,
    host_merging_blocks=0.0004,
    device=0.0003,
    device_merging_blocks=0.00002,
    tokens=0.000003,
    linear=0.0000032,
    pairs=0.00001,
    tokens_in_merging_blocks=0.000003,
)
NOISE = 0.03  # standard deviation of the logarithm of a batch's time
TARGET = 1.0
TOP_K = 5
BATCHES = (1, 32, 128)
QUEUES = (128, 256, 1024)
KINDS = ("alike", "mixed", "auto")
PARTS = (
    "receive",
    "add",
    "take",
    "launch",
    "collect",
    "learn",
    "outcomes",
    "send",
    "loop",
)


class Clock:
    """Adds up the time of each part, without that of the parts which it calls."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def watch(self, owner: object, method: str, part: str) -> None:
        """Count what ``owner`` spends in ``method`` as ``part``."""
        function: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            self._inside.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                taken = time.perf_counter() - started
                self.spent[part] += taken - self._inside.pop()
                if self._inside:
                    self._inside[-1] += taken

        setattr(owner, method, timed)


class Nothing:
    """In the place of a runner and of slots: takes everything, computes nothing."""

    def __init__(self, most: int, clock: Clock) -> None:
        best = torch.rand(most, 2 * TOP_K + 1)
        best[:, -1] = 1
        self._readout = Readout(
            Outputs(torch.zeros(most, 1), torch.zeros(most, 1), None), best, TOP_K
        )
        self._clock = clock

    model = SimpleNamespace(transform=SimpleNamespace(size=(3, 224, 224), dtype="uint8"))

    def view(self, slot: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Of no bytes for each image."""
        return np.empty(0, dtype)

    def launch(self, images: Sequence[ImageInput]) -> BatchInFlight:
        """What the device would give."""
        launched = BatchInFlight(self._readout.first(len(images)), images)
        self._clock.watch(launched, "collect", "collect")
        return launched

    def tokens(self, schedule: Schedule) -> tuple[int, ...]:
        """Of one image, as the runner's."""
        return VIT_B.token_counts(schedule)


@dataclass(frozen=True)
class Case:
    """Batches of at most ``batch`` images from a queue of ``queue``.

    Attributes:
        kind: ``alike``, all at r=8; ``mixed``, each at one of the levels; ``auto``, the engine
            chooses for deadlines that about half of what merging gains can meet.
    """

    kind: str
    batch: int
    queue: int


@dataclass(frozen=True)
class Result:
    """Microseconds for one batch, medians.

    Attributes:
        images: in a batch, the mean.
        parts: of each of `PARTS`.
        total: of all parts.
        cpu: the processor's time for all, the mean.
    """

    kind: str
    batch: int
    queue: int
    images: float
    parts: dict[str, float]
    total: float
    cpu: float


class Host:
    """The engine's loop for one case, on simulated time.

    Attributes:
        images: that ran.
        reply: the last one.
    """

    def __init__(self, case: Case, seed: int = 0) -> None:
        self._case = case
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._now = 0.0
        recorded = RecordedGraphs(
            frozenset(map(VIT_B.image_cost, LEVELS)), tuple(buckets(max(BATCHES))), runs_mixed=True
        )
        self._exact = CostModel(DEVICE, recorded=recorded)
        kinds = graph_calibration_batches(LEVELS, max(BATCHES), recorded.buckets)
        self.calibration = Calibration(
            VIT_B, [Sample(kind, self._takes(kind)) for kind in kinds], recorded
        )
        self.scheduler = Scheduler(
            Bounds(case.batch, case.batch), TARGET, {"vit-b": self.calibration}
        )
        self._api, engine = socket.socketpair()
        self._api.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        engine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self._parent, control = socket.socketpair()
        attach = pack(Attach(0), has_descriptor=True)
        socket.send_fds(self._parent, [attach], [engine.fileno()])
        engine.close()
        self._control = Channel(control, descriptors=True)
        self._clients = Clients(self._control, self.scheduler)
        self.clock = Clock()
        nothing: Any = Nothing(case.batch, self.clock)
        served = EngineModel(nothing, self.calibration)
        row, _ = Board.create(BoardSize(engines=1, workers=1, slots=1024)).engines
        models = {"vit-b": served}
        self._loop = Loop(
            self._clients, self.scheduler, models, nothing, row, on_batch=lambda batch: None
        )
        self._watch()
        self._patience = 1.5 * case.queue / case.batch * self._takes(LEVELS[2:3] * case.batch)
        self._replies = Channel(self._api)
        self.reply = BatchDone("", ())
        self.images = 0

    def close(self) -> None:
        """Free the sockets."""
        self._clients.close()
        self._api.close()
        self._parent.close()
        self._control.close()

    def round(self) -> tuple[dict[str, float], float]:
        """One batch with arrivals that refill the queue. Seconds per part, CPU seconds in all."""
        self._api.sendall(b"".join(map(pack, self._arrivals())))
        self.clock.spent.clear()
        started = time.thread_time()
        self._clients.receive(timeout=None)
        following = self._loop._launch_next()
        cpu = time.thread_time() - started
        if following is not None:
            taken = self._takes([placed.schedule for placed in following.batch])
            self._now += taken
            self.images += len(following.batch)
            following = replace(following, started=time.monotonic() - taken)
            started = time.thread_time()
            self._loop._collect_and_reply(following, None)
            cpu += time.thread_time() - started
        self.reply = self._replies.receive_all(timeout=0)[-1]
        return dict(self.clock.spent), cpu

    def _watch(self) -> None:
        take_next = self.scheduler.take_next
        self.scheduler.take_next = lambda *_: take_next(self._now)  # type: ignore[method-assign]
        for owner, method, part in (
            (self._clients, "receive", "receive"),
            (self._clients, "_handle_messages", "add"),
            (self._loop, "_launch_next", "loop"),
            (self.scheduler, "take_next", "take"),
            (self._loop, "_launch", "launch"),
            (self._loop, "_collect_and_reply", "loop"),
            (self._loop, "_learn_from", "learn"),
            (self._loop, "_build_reply", "outcomes"),
            (self.calibration, "r0_seconds", "learn"),
            (self.calibration, "observe", "learn"),
            (self._clients, "reply", "send"),
        ):
            self.clock.watch(owner, method, part)

    def _arrivals(self) -> Iterator[Job]:
        for number in itertools.islice(self._numbers, self._case.queue - len(self.scheduler)):
            choices = LEVELS[2:3]
            deadline = None
            if self._case.kind == "mixed":
                choices = (self._random.choice(LEVELS),)
            elif self._case.kind == "auto":
                choices = LEVELS
                deadline = self._now + self._patience
            yield Job(number, number % 1024, "vit-b", choices, TOP_K, self._now, deadline)

    def _takes(self, schedules: Sequence[Schedule]) -> float:
        """Seconds of the device."""
        batch = batch_features(
            [VIT_B.image_cost(schedule) for schedule in schedules], self._exact.recorded
        )
        return self._exact.seconds(batch) * self._random.lognormvariate(0, NOISE)


def measure(case: Case, rounds: int) -> Result:
    """``rounds`` batches, after as many as half of that which are not counted."""
    host = Host(case)
    try:
        for _ in range(1 + rounds // 2):
            host.round()
        host.images = 0
        spent, cpu = zip(*(host.round() for _ in range(rounds)), strict=True)
    finally:
        host.close()
    parts = {part: 1e6 * statistics.median(one.get(part, 0.0) for one in spent) for part in PARTS}
    total = 1e6 * statistics.median(sum(one.values()) for one in spent)
    cpu_mean = 1e6 * statistics.mean(cpu)
    return Result(case.kind, case.batch, case.queue, host.images / rounds, parts, total, cpu_mean)


def table(results: Sequence[Result]) -> Table:
    """One row for each case."""
    found = Table(
        "jobs", "batch", "queue", "images", *PARTS, "all", "cpu", title="microseconds for one batch"
    )
    for column in found.columns[1:]:
        column.justify = "right"
    for one in results:
        numbers = [*(one.parts[part] for part in PARTS), one.total, one.cpu]
        found.add_row(
            one.kind,
            f"{one.batch}",
            f"{one.queue}",
            f"{one.images:.0f}",
            *(f"{n:.0f}" for n in numbers),
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code."""
    args = parse(arguments)
    freeze_live_objects()
    torch.set_num_threads(1)
    cases = [
        Case(*each)
        for each in itertools.product(args.kind, args.batch, args.queue)
        if each[1] <= each[2]
    ]
    results = [measure(case, args.rounds) for case in cases]
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table(results))
    if args.json:
        facts = about("benchmarks.host", torch.device("cpu"), threads=1)
        rows = [asdict(result) for result in results]
        args.json.write_text(
            json.dumps({"about": facts, "microseconds": rows}, indent=1) + "\n", "utf-8"
        )
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS, help="of jobs")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="most images in one")
    parser.add_argument(
        "--queue", nargs="+", type=int, default=QUEUES, help="jobs that wait when a batch is cut"
    )
    parser.add_argument(
        "--rounds", type=int, default=200, help="batches that are timed in each case"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())

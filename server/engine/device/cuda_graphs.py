"""CUDA graphs: the forward passes that are expected most, recorded once, so that each is one launch.

A small batch on a GPU waits for the launches of hundreds of small kernels. So passes are recorded
for the configured levels and a few batch sizes, the buckets; a batch is padded up to its bucket.

Where the kernels read on the device where each image begins and ends
(`tome_core.ragged.plan.BoundedPlan`), a graph serves every mix of schedules whose tokens fit into
its buffers: there is one for each level. Elsewhere all shapes follow from the schedule, a graph
serves batches of one level alone, and others run as they come.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from server.engine.device.graph_inputs import GraphInputs, Starts
from server.engine.device.readout import Readout
from tome_core.ragged.plan import BoundedPlan
from tome_core.schedule import Schedule

MAX_GRAPHS = 64
WARM_RUNS = (
    2  # before recording: libraries set themselves up in their first calls, which no graph may hold
)

# Beyond this size buckets are half a power of two apart: padding would cost more than recording
# does.
FINE_FROM = 32

# Records a function of no arguments: what it returns, and what runs it again, into the very same
# tensors.
GraphRecord = Callable[[Callable[[], Readout]], tuple[Readout, Callable[[], None]]]


@dataclass(frozen=True)
class Graph:
    """One recorded forward pass.

    Attributes:
        schedule: of all images; where it is `bounded`, the one whose tokens are the most that
            images may have together.
        pixels: what it reads, uint8 ``(bucket, C, H, W)``, shared with other graphs.
        readout: what it writes. Another graph may overwrite it.
    """

    schedule: Schedule
    bounded: bool
    pixels: Tensor
    readout: Readout
    replay: Callable[[], None]

    def run(self, images: int) -> Readout:
        """Of the first ``images`` of `pixels`: good until any graph runs again, on the stream that it runs on."""
        self.replay()
        return self.readout.first(images)


class Found(NamedTuple):
    """The graph for a batch, and what `Graphs.run` has to tell it; None where it knows."""

    graph: Graph
    starts: Starts | None = None


class Graphs:
    """The recorded passes of one network.

    Args:
        forward: from uint8 pixels on the device, all under one schedule, or within bounds.
        pixels: uint8 ``(max_batch, C, H, W)`` on the device; what all graphs read.
        record: `CudaRecorder`, or what else can.
        mixes: describes batches, where the network takes bounds.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Schedule | BoundedPlan], Readout],
        pixels: Tensor,
        record: GraphRecord,
        mixes: GraphInputs | None = None,
    ) -> None:
        self._forward = forward
        self._record = record
        self.pixels = pixels
        self.mixes = mixes
        self._alike: dict[tuple[Schedule, int], Graph] = {}
        self._bounded: dict[tuple[Schedule, int], Graph] = {}
        self._buckets = buckets(len(pixels))

    def __len__(self) -> int:
        return len(self._alike) + len(self._bounded)

    def __iter__(self) -> Iterator[Graph]:
        yield from self._alike.values()
        yield from self._bounded.values()

    @property
    def schedules(self) -> frozenset[Schedule]:
        """Those that there is a graph of, in some bucket."""
        return frozenset(graph.schedule for graph in self)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes in which all is recorded that is in any."""
        wanted = {(graph.schedule, graph.bounded) for graph in self}
        there = {(graph.schedule, graph.bounded, len(graph.pixels)) for graph in self}
        return tuple(
            bucket for bucket in self._buckets if all((*kind, bucket) in there for kind in wanted)
        )

    def record(self, schedules: Sequence[Schedule]) -> None:
        """Record ``schedules`` in all buckets, as many as the limit allows: small batches gain most.

        Large ones come first, since what follows then fits into the memory that they needed.
        """
        kinds = self._kinds(schedules)
        wanted = [(bucket, *kind) for bucket in self._buckets for kind in kinds][:MAX_GRAPHS]
        for bucket, schedule, bounded in reversed(wanted):
            pixels = self.pixels[:bucket]
            given = self.mixes.plan(schedule, bucket) if self.mixes and bounded else schedule
            graph = Graph(
                schedule, bounded, pixels, *self._record(partial(self._forward, pixels, given))
            )
            (self._bounded if bounded else self._alike)[schedule, bucket] = graph

    def find(self, schedules: Sequence[Schedule]) -> Found | None:
        """The graph for a batch with these schedules, one an image; None where there is none."""
        if len(schedules) > self._buckets[-1]:
            return None
        bucket = self._buckets[bisect_left(self._buckets, len(schedules))]
        if (
            all(schedule == schedules[0] for schedule in schedules)
            and (schedules[0], bucket) in self._alike
        ):
            return Found(self._alike[schedules[0], bucket])
        if self.mixes is None:
            return None
        starts = self.mixes.starts(schedules)
        levels = [schedule for schedule, size in self._bounded if size == bucket]
        level = self.mixes.strongest(levels, bucket, starts)
        return None if level is None else Found(self._bounded[level, bucket], starts)

    def run(self, found: Found, images: int) -> Readout:
        """As `Graph.run`, of what `find` has found."""
        if self.mixes is not None and found.starts is not None:
            self.mixes.write(found.starts)
        return found.graph.run(images)

    def trials(self, source: random.Random) -> Iterator[tuple[Found, list[Schedule]]]:
        """Every graph with a batch that it could be given: random mixes of all `schedules`, and random numbers."""
        levels = sorted(self.schedules, key=str)
        for graph in self:
            bucket = len(graph.pixels)
            below = max((size for size in self._buckets if size < bucket), default=0)
            images = source.randint(below + 1, bucket)
            if self.mixes is None or not graph.bounded:
                yield Found(graph), [graph.schedule] * images
                continue
            schedules = source.choices(levels, k=images)
            for image in range(images):
                if self.mixes.holds(graph.schedule, bucket, self.mixes.starts(schedules)):
                    break
                schedules[image] = graph.schedule
            yield Found(graph, self.mixes.starts(schedules)), schedules

    def _kinds(self, schedules: Sequence[Schedule]) -> list[tuple[Schedule, bool]]:
        """What is recorded in each bucket: a schedule, and whether it is a bound.

        Bounds at r=0 hold for whatever fits into the bucket. Where nothing merges, a graph without
        merging is faster.
        """
        if self.mixes is None:
            return [(schedule, False) for schedule in schedules]
        bounds = dict.fromkeys((Schedule.constant(0), *schedules))
        alike = [schedule for schedule in schedules if not self.mixes.merges(schedule)]
        return [
            *((schedule, False) for schedule in alike),
            *((schedule, True) for schedule in bounds),
        ]


class CudaRecorder:
    """Records CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), all in one memory pool.

    They may share one since they run one after the other, and what they give is copied out before
    the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, run: Callable[[], Readout]) -> tuple[Readout, Callable[[], None]]:
        """See `GraphRecord`."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_RUNS):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                readout = run()
        return readout, graph.replay


def buckets(max_batch: int) -> list[int]:
    """Batch sizes that are recorded: 1, 2, 4, 8, 16, 32, 48, 64, 96, 128 ... and ``max_batch``."""
    sizes = {max_batch}
    power = 1
    while power < max_batch:
        sizes.add(power)
        if power >= FINE_FROM:
            sizes.add(power * 3 // 2)
        power *= 2
    return sorted(size for size in sizes if size <= max_batch)

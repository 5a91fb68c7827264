"""CUDA graphs: forward passes that are recorded before serving, so that each replay is one launch.

The speed of a small batch on a GPU is limited by the launches of hundreds of small kernels.
Therefore the passes of the configured levels are recorded for a few batch sizes, the buckets. A
batch is padded to its bucket.

There are two types of graphs. If the kernels read on the device where each image begins and ends
(`tome_core.ragged.plan.BoundedPlan`), one graph serves every mix of schedules whose tokens fit
into its buffers; such a bounded graph is recorded for each level. Otherwise all shapes follow from
the schedule, and a uniform graph serves the batches in which every image has that schedule. A batch
without a graph runs operator by operator.
"""

from __future__ import annotations

import gc
import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from server.engine.device.graph_inputs import GraphInputs, Starts
from server.engine.device.readout import Readout
from tome_core.ragged.plan import BoundedPlan
from tome_core.schedule import Schedule

# Recording takes seconds of the start and memory. The default levels and batch size of a GPU need
# 60 graphs: 10 buckets, in each r=0 twice and the 4 levels that merge.
MAX_GRAPHS = 64
# Libraries initialise themselves in their first calls, which a graph must not contain.
WARM_UP_RUNS = 2
# From this size on, there are two buckets for each power of two: more padding would cost more than
# more recordings.
TWO_BUCKETS_FROM = 32

Pass = Callable[[], Readout]
Replay = Callable[[], None]
# Records a pass. Returns its readout, and a function that runs the pass again and overwrites the
# tensors of this readout.
Recorder = Callable[[Pass], tuple[Readout, Replay]]
GraphKey = tuple[Schedule, int]  # schedule and bucket


@dataclass(frozen=True)
class Graph:
    """One recorded forward pass.

    Attributes:
        schedule: of all images. Of a bounded graph, the level whose token counts are the bounds.
        bounded: whether it serves every batch within the bounds.
        pixels: input ``(bucket, C, H, W)``, shared with other graphs.
        readout: output. Another graph may overwrite it.
        replay: runs the pass again.
    """

    schedule: Schedule
    bounded: bool
    pixels: Tensor
    readout: Readout
    replay: Replay

    @property
    def variant(self) -> GraphVariant:
        """What is recorded, whatever the bucket."""
        return GraphVariant(self.schedule, self.bounded)

    @property
    def bucket(self) -> int:
        """The number of images that it runs."""
        return len(self.pixels)

    def run(self, images: int) -> Readout:
        """Return the readout of the first ``images`` of `pixels`.

        It is valid on the current stream, until any graph runs again.
        """
        self.replay()
        return self.readout.first(images)


class GraphMatch(NamedTuple):
    """The graph for a batch, and the starts that it reads if it is bounded."""

    graph: Graph
    starts: Starts | None = None


class GraphVariant(NamedTuple):
    """What is recorded in every bucket."""

    schedule: Schedule
    bounded: bool


class Graphs:
    """The recorded passes of one network.

    Args:
        forward: runs pixels on the device, under one schedule or within bounds.
        pixels: ``(max_batch, C, H, W)`` on the device, the input of all graphs.
        record: `CudaRecorder`; tests use others.
        inputs: describes mixed batches; None if the network does not take bounds.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Schedule | BoundedPlan], Readout],
        pixels: Tensor,
        record: Recorder,
        inputs: GraphInputs | None = None,
    ) -> None:
        self._forward = forward
        self._record = record
        self.pixels = pixels
        self.inputs = inputs
        self._uniform: dict[GraphKey, Graph] = {}
        self._bounded: dict[GraphKey, Graph] = {}
        self._buckets = buckets(len(pixels))

    def __len__(self) -> int:
        return len(self._uniform) + len(self._bounded)

    def __iter__(self) -> Iterator[Graph]:
        yield from self._uniform.values()
        yield from self._bounded.values()

    @property
    def schedules(self) -> frozenset[Schedule]:
        """The schedules that have a graph in at least one bucket."""
        return frozenset(graph.schedule for graph in self)

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes in which every variant is recorded."""
        variants = {graph.variant for graph in self}
        complete = []
        for bucket in self._buckets:
            recorded = {graph.variant for graph in self if graph.bucket == bucket}
            if recorded == variants:
                complete.append(bucket)
        return tuple(complete)

    def record(self, schedules: Sequence[Schedule]) -> None:
        """Record ``schedules`` in all buckets, at most `MAX_GRAPHS` graphs.

        Small buckets have priority, since they gain most.
        """
        variants = self._variants(schedules)
        by_priority = itertools.product(self._buckets, variants)
        planned = list(by_priority)[:MAX_GRAPHS]
        # Large buckets first: the smaller ones fit into the memory that these have allocated.
        for bucket, variant in reversed(planned):
            graph = self._record_graph(variant, bucket)
            graphs = self._bounded if variant.bounded else self._uniform
            graphs[variant.schedule, bucket] = graph

    def _variants(self, schedules: Sequence[Schedule]) -> list[GraphVariant]:
        """Return the variants to record, by priority.

        The bounds of r=0 admit every batch that fits into the bucket, so they are always recorded.
        A schedule that merges nothing has a uniform graph too, which is faster.
        """
        if self.inputs is None:
            return [GraphVariant(schedule, bounded=False) for schedule in schedules]
        variants = []
        for schedule in schedules:
            if not self.inputs.merges(schedule):
                variants.append(GraphVariant(schedule, bounded=False))
        bounds = dict.fromkeys([Schedule.constant(0), *schedules])
        for schedule in bounds:
            variants.append(GraphVariant(schedule, bounded=True))
        return variants

    def _record_graph(
        self,
        variant: GraphVariant,
        bucket: int,
    ) -> Graph:
        pixels = self.pixels[:bucket]
        r: Schedule | BoundedPlan = variant.schedule
        if variant.bounded and self.inputs is not None:
            r = self.inputs.plan(variant.schedule, bucket)
        run = partial(self._forward, pixels, r)
        readout, replay = self._record(run)
        return Graph(
            schedule=variant.schedule,
            bounded=variant.bounded,
            pixels=pixels,
            readout=readout,
            replay=replay,
        )

    def find(self, schedules: Sequence[Schedule]) -> GraphMatch | None:
        """Return the graph for a batch with one schedule an image; None if no graph serves it."""
        if len(schedules) > self._buckets[-1]:
            return None
        index = bisect_left(self._buckets, len(schedules))
        bucket = self._buckets[index]
        first = schedules[0]
        if all(schedule == first for schedule in schedules):
            uniform = self._uniform.get((first, bucket))
            if uniform is not None:
                return GraphMatch(uniform)
        if self.inputs is None:
            return None
        starts = self.inputs.starts(schedules)
        levels = [schedule for schedule, size in self._bounded if size == bucket]
        level = self.inputs.tightest(levels, bucket, starts)
        if level is None:
            return None
        return GraphMatch(self._bounded[level, bucket], starts)

    def run(self, match: GraphMatch, images: int) -> Readout:
        """Run the graph that `find` returned; otherwise as `Graph.run`."""
        if self.inputs is not None and match.starts is not None:
            self.inputs.write(match.starts)
        return match.graph.run(images)

    def test_batches(self, rng: random.Random) -> Iterator[tuple[GraphMatch, list[Schedule]]]:
        """Yield each graph with a batch that it can serve.

        The number of images is random, and of a bounded graph the mix of `schedules` as well.
        """
        levels = sorted(self.schedules, key=str)
        for graph in self:
            smaller_buckets = [size for size in self._buckets if size < graph.bucket]
            min_images = max(smaller_buckets, default=0) + 1
            images = rng.randint(min_images, graph.bucket)
            if self.inputs is None or not graph.bounded:
                yield GraphMatch(graph), [graph.schedule] * images
                continue
            schedules = rng.choices(levels, k=images)
            starts = self.inputs.starts(schedules)
            # Replace schedules by the graph's own until the batch lies within its bounds.
            for image in range(images):
                if self.inputs.fits(graph.schedule, graph.bucket, starts):
                    break
                schedules[image] = graph.schedule
                starts = self.inputs.starts(schedules)
            yield GraphMatch(graph, starts), schedules


class CudaRecorder:
    """Records CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).

    All graphs share one memory pool. That is safe because they run one after the other, and the
    results of each are copied before the next one runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, run: Pass) -> tuple[Readout, Replay]:
        """Record ``run``; see `Recorder`."""
        with torch.cuda.device(self._device):
            self._warm_up(run)
            graph = torch.cuda.CUDAGraph()
            recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream)
            with without_garbage_collection(), recording:
                readout = run()
        return readout, graph.replay

    def _warm_up(self, run: Pass) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(self._stream)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause Python's collector of reference cycles.

    A model has reference cycles. If the collector destroys an unused model with its graphs while
    another graph is recorded, CUDA ends the recording with an error.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def buckets(max_batch: int) -> list[int]:
    """Return the batch sizes to record: 1, 2, 4, 8, 16, 32, 48, 64, 96 ... and ``max_batch``."""
    sizes = {max_batch}
    power = 1
    while power < max_batch:
        sizes.add(power)
        if power >= TWO_BUCKETS_FROM:
            sizes.add(power * 3 // 2)
        power *= 2
    return sorted(size for size in sizes if size <= max_batch)

"""CUDA graphs: the forward passes that are expected most, recorded once, so that each is one launch.

A small batch on a GPU waits for the launches of hundreds of small kernels. All shapes of a forward pass follow from
its schedule and its batch size, so a pass can be recorded for the configured levels and a few sizes, its buckets; a
batch is padded up to its bucket. Other schedules, and mixed batches, run as they come.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tome_core.outputs import Outputs
from tome_core.schedule import Schedule

MAX_GRAPHS = 64
WARM_RUNS = 2  # before recording: libraries set themselves up in their first calls, which no graph may hold

# Records a function of no arguments: what it returns, and what runs it again, into the very same tensors.
Record = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], None]]]


@dataclass(frozen=True)
class Graph:
    """One recorded forward pass.

    Attributes:
        pixels: what it reads, uint8 ``(bucket, C, H, W)``, shared with other graphs.
        outputs: what it writes. Another graph may overwrite it.
    """

    pixels: Tensor
    outputs: Outputs
    replay: Callable[[], None]

    def run(self, images: int) -> Outputs:
        """Outputs of the first ``images`` of `pixels`, in memory of their own."""
        self.replay()
        return Outputs(self.outputs.logits[:images].clone(), self.outputs.features[:images].clone(), None)


class Graphs:
    """The recorded passes of one network.

    Args:
        forward: outputs of uint8 pixels on the device, all under one schedule.
        pixels: uint8 ``(max_batch, C, H, W)`` on the device; what all graphs read.
        record: `CudaRecorder`, or what else can.
    """

    def __init__(self, forward: Callable[[Tensor, Schedule], Outputs], pixels: Tensor, record: Record) -> None:
        self._forward, self._pixels, self._record = forward, pixels, record
        self._graphs: dict[tuple[Schedule, int], Graph] = {}
        self._buckets = buckets(len(pixels))

    def __len__(self) -> int:
        return len(self._graphs)

    def items(self) -> list[tuple[Schedule, Graph]]:
        """All graphs, and what they recorded."""
        return [(schedule, graph) for (schedule, _), graph in self._graphs.items()]

    def record(self, schedules: Sequence[Schedule]) -> None:
        """Record ``schedules`` in all buckets, as many as the limit allows: small batches gain most.

        Large ones come first, since what follows then fits into the memory that they needed.
        """
        wanted = [(schedule, bucket) for bucket in self._buckets for schedule in schedules][:MAX_GRAPHS]
        for schedule, bucket in reversed(wanted):
            pixels = self._pixels[:bucket]
            outputs, replay = self._record(partial(self._forward, pixels, schedule))
            self._graphs[schedule, bucket] = Graph(pixels, outputs, replay)

    def find(self, schedules: Sequence[Schedule]) -> Graph | None:
        """The graph for a batch with these schedules, one an image; None where there is none."""
        if len(schedules) > self._buckets[-1] or any(schedule != schedules[0] for schedule in schedules):
            return None
        return self._graphs.get((schedules[0], self._buckets[bisect_left(self._buckets, len(schedules))]))


class CudaRecorder:
    """Records CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), all in one memory pool.

    They may share one since they run one after the other, and what they give is copied out before the next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        """See `Record`."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_RUNS):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                outputs = run()
        return outputs, graph.replay


def buckets(max_batch: int) -> list[int]:
    """Batch sizes that are recorded: 1, 2, 4 ... and ``max_batch``."""
    return sorted({1 << power for power in range(max_batch.bit_length())} | {max_batch})

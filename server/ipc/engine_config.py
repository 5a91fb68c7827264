"""The configuration of an engine process."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.catalog.entries import ModelSpec
from server.ipc.board import BoardSize
from server.ipc.messages import Accelerations


@dataclass(frozen=True)
class EngineConfig:
    """The configuration of an engine process, which is the first message to it.

    Attributes:
        specs: the models to serve. An engine that replaces a lost one has the same, whatever the
            catalog says by then.
        threads: number of CPU threads; 0 for one per core, divided by the number of engines.
        levels: values of r to check at start and to list.
        max_batch: most images in one batch.
        max_batch_work: most FLOPs of one batch, in images at r=0; 0 for those of ``max_batch``.
        engine: its index: of the row on the board and of the region of the metrics.
        board: the size of the board, which says how many engines and slots there are.
        generation: 0 for those that start with the server; see `server.ipc.control.Serving`.
        target_seconds: time in which a job without a deadline is due.
        accelerations: the accelerations that the engine may try.
        cpu_isa: the highest instruction set of the CPU kernels, or ``auto``.
    """

    specs: tuple[ModelSpec, ...]
    device: str
    dtype: str
    threads: int
    levels: tuple[int, ...]
    max_batch: int
    max_batch_work: float
    engine: int
    board: BoardSize
    target_seconds: float
    log_level: str
    accelerations: Accelerations = field(default_factory=Accelerations)
    cpu_isa: str = "auto"
    generation: int = 0

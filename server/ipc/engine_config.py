"""The configuration of an engine process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from server.ipc.messages import Accelerations


@dataclass(frozen=True)
class EngineConfig:
    """The configuration of an engine process, which is the first message to it.

    Attributes:
        catalog_path: TOML file with the models to serve.
        models: timm names of models to serve with weights from the hub.
        threads: number of CPU threads; 0 for one per core, divided by ``engine_count``.
        levels: values of r for which the engine is warmed up.
        max_batch: most images in one batch.
        max_batch_work: most FLOPs of one batch, in images at r=0; 0 for those of ``max_batch``.
        slots: number of slots in shared memory.
        target_seconds: time in which a job without a deadline is due.
        engine_count: number of engines that share the CPU cores of the machine.
        accelerations: the accelerations that the engine may try.
        cpu_isa: the highest instruction set of the CPU kernels, or ``auto``.
    """

    catalog_path: Path | None
    models: tuple[str, ...]
    device: str
    dtype: str
    threads: int
    levels: tuple[int, ...]
    max_batch: int
    max_batch_work: float
    slots: int
    target_seconds: float
    log_level: str
    engine_count: int = 1
    accelerations: Accelerations = field(default_factory=Accelerations)
    cpu_isa: str = "auto"

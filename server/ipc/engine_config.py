"""What an engine process is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from server.ipc.messages import Accelerations


@dataclass(frozen=True)
class EngineConfig:
    """Sent once, as the first message.

    Attributes:
        max_batch_work: in images at r=0; 0 for that of ``max_batch``.
        slots: how many slots there will be, once the engine has said how large one is.
        target_seconds: default target of a job without a deadline.
        share: how many engines share the cores of the machine.
        accelerations: what it may try to be fast by.
    """

    config: Path | None
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
    share: int = 1
    accelerations: Accelerations = field(default_factory=Accelerations)

"""Recording without a GPU, for tests of graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from server.engine.device.readout import Readout

CPU = torch.device("cpu")
IMAGE_SHAPE = (3, 32, 32)


@dataclass
class FakeRecorder:
    """Records a pass by remembering it. A replay runs it again, into the same tensors.

    Attributes:
        logits_error, best_error: added to what a replay computes.
        replayed: the batch size of each replay.
    """

    logits_error: float = 0.0
    best_error: float = 0.0
    replayed: list[int] = field(default_factory=list)

    def __call__(
        self,
        run: Callable[[], Readout],
    ) -> tuple[Readout, Callable[[], None]]:
        readout = run()

        def replay() -> None:
            again = run()
            self.replayed.append(len(again.best))
            readout.outputs.logits.copy_(again.outputs.logits + self.logits_error)
            readout.outputs.features.copy_(again.outputs.features)
            readout.best.copy_(again.best + self.best_error)

        return readout, replay


def random_pixels(count: int) -> np.ndarray:
    """Return uint8 ``(count, C, H, W)``, the same for the same count."""
    rng = np.random.default_rng(seed=count)
    return rng.integers(0, 256, (count, *IMAGE_SHAPE), np.uint8)

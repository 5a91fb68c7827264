"""Random numbers for a batch, one set for each of its clips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Random numbers for one batch.

    Attributes:
        difficulty: from 0 to 1, the share of all variation that a training begins with or has
            reached; what it means is up to who draws.
    """

    batch: int
    generator: torch.Generator
    difficulty: float = 1.0

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return numbers ``(batch, *shape)`` from ``low`` to ``high``."""
        values = torch.rand(
            self.batch, *shape, device=self.generator.device, generator=self.generator
        )
        return low + (high - low) * values

    def ratio(self, bounds: tuple[float, float], *shape: int) -> Tensor:
        """Return factors ``(batch, *shape)`` in ``bounds``, uniform in their logarithm."""
        return self.uniform(math.log(bounds[0]), math.log(bounds[1]), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        """Return normal numbers ``(batch, *shape)``."""
        return torch.randn(
            self.batch, *shape, device=self.generator.device, generator=self.generator
        )

    def chance(self, share: float, *shape: int) -> Tensor:
        """Return booleans ``(batch, *shape)``, true for ``share`` of them."""
        return self.uniform(0, 1, *shape) < share

    def integers(self, count: int, *shape: int) -> Tensor:
        """Return integers ``(batch, *shape)`` from 0 to ``count - 1``."""
        return torch.randint(
            count,
            (self.batch, *shape),
            device=self.generator.device,
            generator=self.generator,
        )

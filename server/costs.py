"""How long a batch takes: a linear model of five exact features, and its fit. Pure maths, shared by API and engine.

    seconds = contention * (a + b * groups + c * tokens + d * linear MACs + e * pairs) + delay

All five coefficients are at least 0, since no work takes negative time. The features follow from the schedules alone;
`docs/scheduling.md` says how well they predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tome_core.cost import Cost
from tome_core.schedule import Schedule

Vector = npt.NDArray[np.float64]
Features = tuple[float, float, float, float, float]

_TOKENS, _MACS, _PAIRS = 1e3, 1e9, 1e6
_RIDGE = 1e-6


class Load(NamedTuple):
    """What one image adds to its batch.

    Attributes:
        tokens: that enter a block, over all blocks, in thousands.
        linear: MACs of linear layers, in 1e9.
        pairs: of tokens in attention, over all blocks (the sum of N^2), in millions.
    """

    tokens: float
    linear: float
    pairs: float


@dataclass(frozen=True)
class Geometry:
    """All of a model that its costs follow from.

    Attributes:
        tokens, prefix: at the input of the first block.
    """

    tokens: int
    prefix: int
    depth: int
    cost: Cost

    def counts(self, schedule: Schedule) -> tuple[int, ...]:
        """Token counts of one image: at the input and after each block."""
        return schedule.tokens(self.depth, self.tokens, self.prefix)

    def load(self, schedule: Schedule) -> Load:
        """What one image under ``schedule`` adds to its batch."""
        counts = self.counts(schedule)
        inside = counts[:-1]
        return Load(sum(inside) / _TOKENS, self.cost.linear(counts) / _MACS, sum(n * n for n in inside) / _PAIRS)

    def relative(self, schedule: Schedule) -> float:
        """FLOPs of one image as a share of those at r=0."""
        return self.cost.relative(self.counts(schedule))


def features(loads: Sequence[Load]) -> Features:
    """Of a batch of images with these loads; those that merge alike are a group."""
    tokens, linear, pairs = map(sum, zip(*loads, strict=True))
    return 1.0, float(len(set(loads))), tokens, linear, pairs


@dataclass(frozen=True)
class Estimate:
    """What the engine knows of a model's speed now.

    Attributes:
        coefficients: seconds per unit of each feature, on the machine as it was at warm-up.
        contention: how many times longer batches take now, whatever they are.
        delay: seconds that each takes longer besides, however small it is.
        margin: by how much a prediction is exceeded at times, as a share: the 90th percentile of the last errors.
    """

    coefficients: Features
    contention: float = 1.0
    delay: float = 0.0
    margin: float = 0.1

    def seconds(self, batch: Features) -> float:
        """Of a batch with these features."""
        return self.contention * sum(a * b for a, b in zip(self.coefficients, batch, strict=True)) + self.delay

    def image(self, load: Load) -> float:
        """Seconds that one image adds to its batch."""
        _, _, tokens, linear, pairs = self.coefficients
        return self.contention * (tokens * load.tokens + linear * load.linear + pairs * load.pairs)

    @property
    def overhead(self) -> float:
        """Seconds of a batch of one group besides its images."""
        return self.contention * (self.coefficients[0] + self.coefficients[1]) + self.delay

    def quiet(self) -> Estimate:
        """The same as if nobody else used the machine."""
        return replace(self, contention=min(self.contention, 1.0), delay=0.0, margin=0.0)


def solve(gram: Vector, moment: Vector) -> Vector:
    """The x >= 0 that minimises x'Gx - 2x'm (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23).

    Args:
        gram: ``(n, n)``, A'A of the rows of a least-squares problem.
        moment: ``(n,)``, A'b.
    """
    size = len(moment)
    # All variables in units in which their columns have length 1, so that a tiny ridge means the same for each.
    scale = 1 / np.sqrt(np.maximum(gram.diagonal(), 1e-300))
    gram = gram * np.outer(scale, scale) + _RIDGE * np.eye(size)
    moment = moment * scale
    solution, passive = np.zeros(size), np.zeros(size, bool)
    tolerance = 1e-10 * max(float(np.abs(moment).max()), 1e-300)
    for _ in range(3 * size):
        slope = np.where(passive, -np.inf, moment - gram @ solution)
        if slope.max() <= tolerance:
            break
        passive[slope.argmax()] = True
        while True:
            trial = np.zeros(size)
            trial[passive] = np.linalg.solve(gram[np.ix_(passive, passive)], moment[passive])
            below = passive & (trial <= 0)
            if not below.any():
                break
            # Go towards the trial as far as nothing gets negative; what has come to 0 stays there.
            step = float((solution[below] / (solution[below] - trial[below])).min())
            solution = solution + step * (trial - solution)
            passive &= solution > 1e-14
            solution[~passive] = 0.0
        solution = trial
    return solution * scale

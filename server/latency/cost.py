"""How long a batch takes: a linear model of exact features, and its fit. Pure maths, shared by API and engine.

    seconds = contention * (host + device) + delay
            = contention * max(host, device) + delay     where CUDA graphs are recorded, beside which others run

Both are sums of coefficients times features: what the processor does for the batch as such, and
what its tokens cost. A GPU computes while the processor launches what is next.
All coefficients are at least 0, since no work takes negative time. The features follow from the
schedules alone, and from what CUDA graphs are recorded; `docs/scheduling.md` says how well they
predict.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tome_core.cost import Cost
from tome_core.schedule import Schedule

Vector = npt.NDArray[np.float64]

_TOKENS = 1e3
_MACS = 1e9
_PAIRS = 1e6
_RIDGE = 1e-6


class Load(NamedTuple):
    """What one image adds to its batch.

    Attributes:
        tokens: that enter a block, over all blocks, in thousands.
        linear: MACs of linear layers, in 1e9.
        pairs: of tokens in attention, over all blocks (the sum of N^2), in millions.
        merged: those of ``tokens`` that enter a block that merges: matching and merging read and
            write them all.
        blocks: that merge.
    """

    tokens: float
    linear: float
    pairs: float
    merged: float = 0.0
    blocks: int = 0


class Features(NamedTuple):
    """What the time of one batch is made of; as coefficients, seconds for one of each.

    Attributes:
        host: 1 for a batch that runs operator by operator, as all do on a CPU; 0 for one that a
            graph runs.
        host_blocks: the blocks of such a batch that merge.
        groups: of images that merge alike in such a batch.
        device: 1 on a device for which graphs are recorded, whatever runs the batch, else 0.
        device_blocks: the blocks that merge there.
        tokens, linear, pairs, merged: of all images, as in `Load`; of those too that fill up the
            batch of a graph.
        mixed: the tokens of a batch of several groups there.
    """

    host: float = 0.0
    host_blocks: float = 0.0
    groups: float = 0.0
    device: float = 0.0
    device_blocks: float = 0.0
    tokens: float = 0.0
    linear: float = 0.0
    pairs: float = 0.0
    merged: float = 0.0
    mixed: float = 0.0

    def sides(self) -> tuple[Features, Features]:
        """The part that the host has to do, and that of the device."""
        host = Features(*self[:3])
        return host, self._replace(host=0.0, host_blocks=0.0, groups=0.0)

    def dot(self, other: Features) -> float:
        """The sum of the products."""
        return sum(a * b for a, b in zip(self, other, strict=True))


@dataclass(frozen=True)
class Recorded:
    """The batches of a model that CUDA graphs run: those whose images are all of one of these levels, or all.

    Attributes:
        levels: what an image of each adds.
        buckets: batch sizes, ascending, in each of which every level is recorded. A batch is filled
            up to the next.
        any: whether batches up to the largest bucket are run by graphs whatever their images are.
            Those that are not of one level are taken to cost what their own tokens do: the more
            room there is in a bucket, the stronger the level whose graph they fit into.
    """

    levels: frozenset[Load] = frozenset()
    buckets: tuple[int, ...] = ()
    any: bool = False

    def bucket(self, load: Load, images: int) -> int:
        """The size of the graph that runs ``images`` with this load; 0 where none does."""
        if not self.buckets or images > self.buckets[-1] or load not in self.levels:
            return 0
        return self.buckets[bisect_left(self.buckets, images)]

    def launches(self, images: int) -> bool:
        """Whether the operators of ``images`` that are not of one level are launched one by one."""
        return not (self.any and images <= self.buckets[-1])


NOTHING = Recorded()  # as on a CPU


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
        merging = [before for before, after in pairwise(counts) if after < before]
        return Load(
            sum(inside) / _TOKENS,
            self.cost.linear(counts) / _MACS,
            sum(n * n for n in inside) / _PAIRS,
            sum(merging) / _TOKENS,
            len(merging),
        )

    def relative(self, schedule: Schedule) -> float:
        """FLOPs of one image as a share of those at r=0."""
        return self.cost.relative(self.counts(schedule))


def features(loads: Sequence[Load], recorded: Recorded = NOTHING) -> Features:
    """Of a batch of images with these loads, of which those that merge alike are a group."""
    groups = set(loads)
    blocks = max(load.blocks for load in groups)
    if len(groups) == 1 and (bucket := recorded.bucket(loads[0], len(loads))):
        tokens, linear, pairs, merged, _ = (bucket * each for each in loads[0])
        return Features(0.0, 0.0, 0.0, 1.0, blocks, tokens, linear, pairs, merged)
    tokens, linear, pairs, merged, _ = map(sum, zip(*loads, strict=True))
    on_host = recorded.launches(len(loads))
    host = (1.0, float(blocks), float(len(groups))) if on_host else (0.0, 0.0, 0.0)
    if not recorded.buckets:
        return Features(*host, 0.0, 0.0, tokens, linear, pairs, merged)
    mixed = tokens if len(groups) > 1 else 0.0
    return Features(*host, 1.0, blocks, tokens, linear, pairs, merged, mixed)


def binding(batch: Features, coefficients: Features) -> Features:
    """The part of ``batch`` that its time follows: the longer one, where host and device work at once."""
    if not batch.device:
        return batch
    host, device = batch.sides()
    return host if host.dot(coefficients) > device.dot(coefficients) else device


@dataclass(frozen=True)
class Estimate:
    """What the engine knows of a model's speed now.

    Attributes:
        coefficients: seconds per unit of each feature, on the machine as it was at warm-up.
        contention: how many times longer batches take now, whatever they are.
        delay: seconds that each takes longer besides, however small it is.
        margin: by how much a prediction is exceeded at times, as a share: the 90th percentile of
            the last errors.
        recorded: what graphs run; nothing on a CPU.
    """

    coefficients: Features
    contention: float = 1.0
    delay: float = 0.0
    margin: float = 0.1
    recorded: Recorded = NOTHING

    def seconds(self, batch: Features) -> float:
        """Of a batch with these features."""
        return (
            self.contention * binding(batch, self.coefficients).dot(self.coefficients) + self.delay
        )

    def image(self, load: Load, mixed: bool = False) -> float:
        """Seconds that one image adds to its batch, without regard to steps; to one of several groups if ``mixed``."""
        each = self.coefficients
        work = each.tokens * load.tokens + each.linear * load.linear + each.pairs * load.pairs
        work += each.merged * load.merged
        if mixed:
            work += each.mixed * load.tokens
        return self.contention * work

    def alike(self, load: Load, images: int) -> float:
        """Seconds of a batch of ``images`` with this load each: in steps, where it is recorded."""
        if bucket := self.recorded.bucket(load, images):
            return self._computing(load.blocks) + bucket * self.image(load) + self.delay
        return self.unlike(images, load.blocks, images * self.image(load))

    def unlike(self, images: int, blocks: int, each: float) -> float:
        """Seconds of a batch of ``images`` that are not all of one recorded level.

        Args:
            blocks: in which it merges.
            each: seconds of its images, by `image`.
        """
        if not self.recorded.buckets:
            return self._launching(blocks) + each + self.delay
        computing = self._computing(blocks) + each
        if not self.recorded.launches(images):
            return computing + self.delay
        return max(self._launching(blocks), computing) + self.delay

    def _launching(self, blocks: int) -> float:
        """Seconds of the host for a batch of one group as such, which merges in ``blocks``."""
        once = self.coefficients
        return self.contention * (once.host + once.host_blocks * blocks + once.groups)

    def _computing(self, blocks: int) -> float:
        """Seconds of the device for such a batch as such, beside graphs."""
        once = self.coefficients
        return self.contention * (once.device + once.device_blocks * blocks)

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
    # All variables in units in which their columns have length 1, so that a tiny ridge means the
    # same for each.
    scale = 1 / np.sqrt(np.maximum(gram.diagonal(), 1e-300))
    gram = gram * np.outer(scale, scale) + _RIDGE * np.eye(size)
    moment = moment * scale
    solution = np.zeros(size)
    passive = np.zeros(size, bool)
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

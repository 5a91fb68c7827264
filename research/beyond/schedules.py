"""How many tokens each block merges: shapes over the blocks, and the r that makes FLOPs equal."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from research.bench import Shape
from tome_core.cost import Cost
from tome_core.matching import Matcher
from tome_core.ragged.plan import token_counts
from tome_core.schedule import Schedule

# The number of blocks -> how much each of them merges, relative to the others.
Weights = Callable[[int], Sequence[float]]

CONSTANT = "R"
BY_LOSS = "by-loss"
_STEPS = 8  # between two whole numbers of tokens
NOTES = {
    CONSTANT: "the same in every block",
    "R:x": "linear over the blocks, as the schedule of that text: from (1 - x)R to (1 + x)R",
    "spare-first-n": "nothing in the first n blocks, the same in the others",
    "spare-last-n": "nothing in the last n blocks, the same in the others",
    "every-second": "one matching for two blocks: twice as many, in every second block",
    BY_LOSS: "in inverse proportion to what merging in that block alone costs, class loss and patch"
    " loss together, on other images",
}


def linear(inflection: float) -> Weights:
    """Weights as `Schedule.linear` has them, from ``1 - inflection`` to ``1 + inflection``."""

    def weights(depth: int) -> list[float]:
        last = max(depth - 1, 1)
        return [1 + inflection * (2 * block / last - 1) for block in range(depth)]

    return weights


def sparing(first: int = 0, last: int = 0) -> Weights:
    """Nothing in so many of the first and of the last blocks, the same in the others."""

    def weights(depth: int) -> list[float]:
        return [float(first <= block < depth - last) for block in range(depth)]

    return weights


def every_second(depth: int) -> list[float]:
    """All of two blocks in the first of them."""
    return [2.0 * (block % 2 == 0) for block in range(depth)]


# `BY_LOSS` is not among them: its weights are measured (`Measurer.block_losses`).
SHAPES: dict[str, Weights] = {
    CONSTANT: linear(0),
    "R:-0.5": linear(-0.5),
    "R:-0.25": linear(-0.25),
    "R:0.5": linear(0.5),
    "spare-first-1": sparing(first=1),
    "spare-first-2": sparing(first=2),
    "spare-first-3": sparing(first=3),
    "spare-last-1": sparing(last=1),
    "spare-last-2": sparing(last=2),
    "every-second": every_second,
}


def spread(weights: Sequence[float], tokens: float) -> Schedule:
    """Return the schedule that merges ``tokens`` in all blocks together, in these proportions.

    It need not be a whole number: what each block has merged in sum is rounded. A block that can
    merge fewer than its share merges what it can.
    """
    total = math.fsum(weights)
    counts = []
    done = 0
    for block in range(len(weights)):
        until = math.floor(tokens * math.fsum(weights[: block + 1]) / total + 0.5)
        counts.append(until - done)
        done = until
    return Schedule.per_layer(counts)


def relative_flops(cost: Cost, schedule: Schedule, shape: Shape, matcher: Matcher) -> float:
    """Return the FLOPs of ``schedule``, relative to no merging."""
    return cost.relative(token_counts(schedule, shape.depth, shape.tokens, shape.prefix, matcher))


def equal_flops(
    target: float, weights: Sequence[float], cost: Cost, shape: Shape, matcher: Matcher
) -> Schedule:
    """Return the schedule of these proportions whose relative FLOPs are nearest to ``target``.

    Its r need not be a whole number: blocks differ by one where it is not, so that FLOPs differ by
    less than a comparison of losses would notice.
    """

    def flops(tokens: float) -> float:
        return relative_flops(cost, spread(weights, tokens), shape, matcher)

    # The more tokens merge, the fewer FLOPs; but for rounding, so those around are tried too.
    whole = bisect_left(range(shape.tokens * shape.depth), -target, key=lambda n: -flops(n))
    around = [max(whole + step / _STEPS, 0) for step in range(-2 * _STEPS, 2 * _STEPS + 1)]
    return spread(weights, min(around, key=lambda tokens: abs(flops(tokens) - target)))

"""One run of the command: what its rows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from research.beyond.measuring import Measurer
from research.beyond.results import Result
from research.beyond.rows import Row
from research.beyond.schedules import BY_LOSS, SHAPES, equal_flops
from research.beyond.ways import PAPER, WAYS
from tome_core.schedule import Schedule

# A block in which merging costs nothing would get all of it.
_LEAST_LOSS = 1e-7


class Run:
    """Measures rows.

    Args:
        measurer: of the model and the images.
        r: the paper's FLOPs at it are those of all rows that have none of their own.

    Attributes:
        block_losses: of the ways that have been calibrated; see `Measurer.block_losses`.
    """

    def __init__(self, measurer: Measurer, r: int) -> None:
        self._measurer = measurer
        self._r = r
        self.block_losses: dict[str, list[float]] = {}

    def measure(self, row: Row, advance: Callable[[int], object] = lambda images: None) -> Result:
        """Measure one row."""
        return self._measurer.measure(WAYS[row.way], self.schedule(row), advance)

    def schedule(self, row: Row) -> Schedule:
        """Return the schedule of a row; one by loss calibrates."""
        if row.r is not None:
            return Schedule.constant(row.r)
        measurer = self._measurer
        way = WAYS[row.way]
        target = measurer.flops(WAYS[PAPER], Schedule.constant(self._r))
        if row.shape == BY_LOSS:
            weights = self._weights_by_loss(row.way)
        else:
            weights = SHAPES[row.shape](measurer.bench.shape.depth)
        cost = way.comparisons.of(measurer.cost)
        return equal_flops(target, weights, cost, measurer.bench.shape, way.matcher)

    def _weights_by_loss(self, name: str) -> Sequence[float]:
        if name not in self.block_losses:
            self.block_losses[name] = self._measurer.block_losses(WAYS[name], self._r)
        return [1 / max(loss, _LEAST_LOSS) for loss in self.block_losses[name]]

"""The rows of the report: which way is measured under which schedule."""

from __future__ import annotations

from dataclasses import dataclass

from research.beyond.schedules import BY_LOSS, CONSTANT, SHAPES
from research.beyond.ways import NEAREST, PAIRS, PAPER, WAYS

OTHER_R = (8, 13, 16, 20)


@dataclass(frozen=True)
class Row:
    """A way to merge under a schedule.

    Attributes:
        way: of `WAYS`.
        shape: of `SHAPES`, or `BY_LOSS`.
        r: in every block; None for as many as make FLOPs equal.
    """

    way: str
    shape: str = CONSTANT
    r: int | None = None

    @property
    def name(self) -> str:
        """What its results are kept under, and `--only` looks in."""
        return f"{self.way} {self.shape}" if self.r is None else f"{self.way} r={self.r}"


def make_rows(r: int) -> dict[str, Row]:
    """Return all rows by their names, those first that others are compared with.

    Args:
        r: of the rows of equal schedules; the paper's FLOPs at it are those of all others.
    """
    rows = [Row(PAPER, r=r), Row(PAIRS, r=r), Row(PAIRS)]
    # At its own r the paper's constant schedule is what others' FLOPs are equal to.
    rows += [Row(way, r=r) for way in WAYS if way not in (PAPER, PAIRS)]
    rows += [Row(way) for way in WAYS if way not in (PAPER, PAIRS)]
    for way in (PAIRS, NEAREST):
        rows += [Row(way, shape) for shape in (*SHAPES, BY_LOSS) if shape != CONSTANT]
    rows += [Row(PAPER, shape) for shape in SHAPES if shape.startswith("R:")]
    for other in OTHER_R:
        if other != r:
            rows += [Row(way, r=other) for way in (PAPER, PAIRS, NEAREST)]
    return {row.name: row for row in rows}


def base_rows(row: Row, r: int) -> tuple[str, str]:
    """Return the names of the rows of "paper" and "pairs" that ``row`` is compared with.

    Args:
        r: as for `make_rows`.
    """
    if row.r is not None:
        return Row(PAPER, r=row.r).name, Row(PAIRS, r=row.r).name
    return Row(PAPER, r=r).name, Row(PAIRS).name

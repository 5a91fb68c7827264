"""Plots of quality against speed-up; need matplotlib (``pip install 'tome-serve[plot]'``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.catalog.profiles import ProfileRow
from server.errors import ConfigError


@dataclass(frozen=True)
class Quality:
    """What the vertical axis shows.

    Attributes:
        field: of the rows.
        label: of the axis.
        least_height: of the axis: a difference that is noise must not look large.
    """

    field: str
    label: str
    least_height: float

    def of(self, row: ProfileRow) -> float:
        """Return the value of a row that has it."""
        value: float = getattr(row, self.field)
        return value


ACCURACY = Quality("accuracy", "top-1 accuracy, %", 6.0)
AGREEMENT = Quality("agreement", "agreement with r=0, % of images", 6.0)
COSINE = Quality("cosine", "mean cosine of the features with those at r=0", 0.06)

# Offsets of labels from their points, in typographic points. Curves start at one point, so the
# labels of the first curve are above it, those of the second below, and those of others far above.
_HEIGHTS = (5, -12, 14)
_LEFT = -2
_RIGHT = (6, -3)


def plot_profiles(
    curves: Mapping[str, Sequence[ProfileRow]], path: Path, quality: Quality = ACCURACY
) -> None:
    """Draw a curve for each entry of ``curves`` into ``path``, whose suffix selects the format.

    Rows without that quality are left out.

    Raises:
        ConfigError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "a plot needs matplotlib; `pip install 'tome-serve[plot]'` installs it"
        ) from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    draw_profiles(axes, curves, _measured_speedup, quality)
    axes.set_xlabel("measured speed-up over r=0")
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the plot to {path}: {error}") from error


def _measured_speedup(row: ProfileRow) -> float:
    return row.speedup


def draw_profiles(
    axes: Any,
    curves: Mapping[str, Sequence[ProfileRow]],
    x_value: Callable[[ProfileRow], float],
    quality: Quality = ACCURACY,
) -> None:
    """Draw the quality of each row over its ``x_value`` into matplotlib's ``axes``.

    A line joins constant schedules. Others differ in more than one number, so each is a mark. Rows
    without that quality are left out.
    """
    for index, (name, all_rows) in enumerate(curves.items()):
        rows = [row for row in all_rows if getattr(row, quality.field) is not None]
        constant = [row for row in rows if row.r.isdigit()]
        constant.sort(key=x_value)
        others = [row for row in rows if not row.r.isdigit()]
        height = _HEIGHTS[min(index, len(_HEIGHTS) - 1)]
        colour = _draw_line(axes, name, constant, x_value, quality, height)
        _draw_marks(axes, others, x_value, quality, colour)
    low, high = axes.get_ylim()
    margin = max(0.0, quality.least_height - (high - low)) / 2
    axes.set_ylim(low - margin, high + margin)
    axes.margins(x=0.1)
    axes.set_ylabel(quality.label)
    axes.grid(alpha=0.3)


def _draw_line(
    axes: Any,
    name: str,
    rows: Sequence[ProfileRow],
    x_value: Callable[[ProfileRow], float],
    quality: Quality,
    label_height: int,
) -> Any:
    """Draw one curve with its labels; return its colour."""
    x = [x_value(row) for row in rows]
    y = [quality.of(row) for row in rows]
    (line,) = axes.plot(x, y, "o-", label=name)
    colour = line.get_color()
    for row in rows:
        text = "r=0" if row.r == "0" else row.r
        offset = (_LEFT, label_height)
        _annotate(axes, text, (x_value(row), quality.of(row)), offset, colour, ha="right")
    return colour


def _draw_marks(
    axes: Any,
    rows: Sequence[ProfileRow],
    x_value: Callable[[ProfileRow], float],
    quality: Quality,
    colour: Any,
) -> None:
    x = [x_value(row) for row in rows]
    y = [quality.of(row) for row in rows]
    axes.plot(x, y, marker="D", fillstyle="none", linestyle="", color=colour)
    for row in rows:
        _annotate(axes, row.r, (x_value(row), quality.of(row)), _RIGHT, colour)


def _annotate(
    axes: Any,
    text: str,
    point: tuple[float, float],
    offset: tuple[int, int],
    colour: Any,
    **options: str,
) -> None:
    axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        size=8,
        color=colour,
        **options,
    )

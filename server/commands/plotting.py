"""Plots of accuracy against speed-up; need matplotlib (``pip install 'tome-serve[plot]'``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.catalog.profiles import ProfileRow
from server.errors import ConfigError

# Smallest height of the accuracy axis, in percentage points: a difference of a tenth is noise, and
# must not look large.
MIN_POINTS = 6.0

# Offsets of labels from their points, in typographic points. Curves start at one point, so the
# labels of the first curve are above it and those of the others below.
_ABOVE = 5
_BELOW = -12
_LEFT = -2
_RIGHT = (6, -3)


def plot_profiles(curves: Mapping[str, Sequence[ProfileRow]], path: Path) -> None:
    """Draw a curve for each entry of ``curves`` into ``path``, whose suffix selects the format.

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
    draw_profiles(axes, curves, _measured_speedup)
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
) -> None:
    """Draw the accuracy of each row over its ``x_value`` into matplotlib's ``axes``.

    A line joins constant schedules. Others differ in more than one number, so each is a mark.
    """
    for index, (name, rows) in enumerate(curves.items()):
        constant = [row for row in rows if row.r.isdigit()]
        constant.sort(key=x_value)
        others = [row for row in rows if not row.r.isdigit()]
        height = _ABOVE if index == 0 else _BELOW
        colour = _draw_line(axes, name, constant, x_value, height)
        _draw_marks(axes, others, x_value, colour)
    low, high = axes.get_ylim()
    margin = max(0.0, MIN_POINTS - (high - low)) / 2
    axes.set_ylim(low - margin, high + margin)
    axes.margins(x=0.1)
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(alpha=0.3)


def _draw_line(
    axes: Any,
    name: str,
    rows: Sequence[ProfileRow],
    x_value: Callable[[ProfileRow], float],
    label_height: int,
) -> Any:
    """Draw one curve with its labels; return its colour."""
    x = [x_value(row) for row in rows]
    y = [row.accuracy for row in rows]
    (line,) = axes.plot(x, y, "o-", label=name)
    colour = line.get_color()
    for row in rows:
        text = "r=0" if row.r == "0" else row.r
        offset = (_LEFT, label_height)
        _annotate(axes, text, (x_value(row), row.accuracy), offset, colour, ha="right")
    return colour


def _draw_marks(
    axes: Any,
    rows: Sequence[ProfileRow],
    x_value: Callable[[ProfileRow], float],
    colour: Any,
) -> None:
    x = [x_value(row) for row in rows]
    y = [row.accuracy for row in rows]
    axes.plot(x, y, marker="D", fillstyle="none", linestyle="", color=colour)
    for row in rows:
        _annotate(axes, row.r, (x_value(row), row.accuracy), _RIGHT, colour)


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

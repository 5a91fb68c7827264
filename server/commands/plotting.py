"""Accuracy against speed-up, as a picture; needs matplotlib (``pip install 'tome-serve[plot]'``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.catalog.profiles import Row
from server.errors import ConfigError

MIN_POINTS = 6.0


def plot_profiles(curves: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw a curve for each entry of ``curves`` into ``path``, whose suffix says the format.

    Raises:
        ConfigError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "a plot needs matplotlib; `pip install 'tome-serve[plot]'` brings it"
        ) from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    draw_profiles(axes, curves, lambda row: row.speedup)
    axes.set_xlabel("measured speed-up over r=0")
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the plot to {path}: {error}") from error


def draw_profiles(
    axes: Any, curves: Mapping[str, Sequence[Row]], across: Callable[[Row], float]
) -> None:
    """Draw accuracies into matplotlib's ``axes``, each above what ``across`` says of its row."""
    for index, (name, rows) in enumerate(curves.items()):
        constant = sorted((row for row in rows if row.r.isdigit()), key=across)
        others = [row for row in rows if not row.r.isdigit()]
        (line,) = axes.plot(
            [across(row) for row in constant], [row.accuracy for row in constant], "o-", label=name
        )
        # No curve goes through schedules that differ in more than one number.
        points = [across(row) for row in others], [row.accuracy for row in others]
        axes.plot(*points, marker="D", fillstyle="none", linestyle="", color=line.get_color())
        # Curves start at one point: what belongs to the first stands above it, and in the colour of
        # its curve.
        height = 5 if index == 0 else -12
        style = {"textcoords": "offset points", "size": 8, "color": line.get_color()}
        for row in constant:
            text = row.r if row.r != "0" else f"r={row.r}"
            axes.annotate(text, (across(row), row.accuracy), (-2, height), ha="right", **style)
        for row in others:
            axes.annotate(row.r, (across(row), row.accuracy), (6, -3), **style)
    # At least a few points of accuracy high: a difference of a tenth is noise and should look like
    # it.
    low, high = axes.get_ylim()
    slack = max(0.0, MIN_POINTS - (high - low)) / 2
    axes.set_ylim(low - slack, high + slack)
    axes.margins(x=0.1)
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(alpha=0.3)

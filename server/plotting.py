"""Accuracy against speed-up, as a picture; needs matplotlib (``pip install 'tome-serve[plot]'``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from server.errors import ConfigError
from server.profiles import Row

MIN_POINTS = 6.0


def plot_profiles(curves: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw a curve for each entry of ``curves`` into ``path``, whose suffix says the format.

    Raises:
        ConfigError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a plot needs matplotlib; `pip install 'tome-serve[plot]'` brings it") from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, rows in curves.items():
        constant = sorted((row for row in rows if row.r.isdigit()), key=lambda row: row.speedup)
        others = [row for row in rows if not row.r.isdigit()]
        (line,) = axes.plot([row.speedup for row in constant], [row.accuracy for row in constant], "o-", label=name)
        # No curve goes through schedules that differ in more than one number.
        points = [row.speedup for row in others], [row.accuracy for row in others]
        axes.plot(*points, marker="D", fillstyle="none", linestyle="", color=line.get_color())
        for row in rows:
            axes.annotate(f"r={row.r}", (row.speedup, row.accuracy), xytext=(4, 5), textcoords="offset points", size=8)
    # At least a few points of accuracy high: a difference of a tenth is noise and should look like it.
    low, high = axes.get_ylim()
    slack = max(0.0, MIN_POINTS - (high - low)) / 2
    axes.set_ylim(low - slack, high + slack)
    axes.margins(x=0.1)
    axes.set(xlabel="measured speed-up over r=0", ylabel="top-1 accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the plot to {path}: {error}") from error

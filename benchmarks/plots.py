"""Pictures of a run; they need matplotlib, which ``pip install --group bench`` brings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import OURS
from benchmarks.results import Result


def draw(results: Sequence[Result], folder: Path) -> Iterator[Path]:
    """Plot throughput against r per model; returns the paths.

    Raises:
        ImportError: matplotlib is not installed.
    """
    for model in dict.fromkeys(result.model for result in results):
        yield throughput(model, [result for result in results if result.model == model], folder)


def throughput(model: str, results: Sequence[Result], folder: Path) -> Path:
    """Throughput against r at the largest batch, one panel a dtype; who cannot merge is a level."""
    dtypes = list(dict.fromkeys(result.dtype for result in results))
    figure = _figure(6 * len(dtypes))
    for axes, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False)[0], dtypes, strict=True):
        rows = [result for result in results if result.dtype == dtype and result.r.isdigit()]
        batch = max(row.batch for row in rows)
        rows = [row for row in rows if row.batch == batch]
        for index, contender in enumerate(dict.fromkeys(row.contender for row in rows)):
            _curve(
                axes, contender, [row for row in rows if row.contender == contender], f"C{index}"
            )
        bound = sorted({int(row.r): row.batch / row.bound_seconds for row in rows}.items())
        axes.plot(*zip(*bound, strict=True), color="black", linestyle=":", label="bound")
        axes.set(
            title=f"{model}, {dtype}, batch {batch}",
            xlabel="r, tokens merged in each block",
            ylabel="images/s",
        )
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path = folder / f"throughput-{re.sub('[^A-Za-z0-9_-]', '-', model)}.png"
    figure.savefig(path, dpi=150)
    return path


def _figure(width: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 4.2), layout="constrained")


def _curve(axes: Any, contender: str, rows: Sequence[Result], color: str) -> None:
    """A line over r, or a level across the whole picture for one who only knows r=0."""
    rows = sorted(rows, key=lambda row: int(row.r))
    if len(rows) == 1 and contender != OURS:
        axes.axhline(
            rows[0].images_per_s, color=color, linestyle="--", linewidth=1, label=contender
        )
    else:
        axes.plot(
            [int(row.r) for row in rows],
            [row.images_per_s for row in rows],
            "o-",
            color=color,
            label=contender,
        )

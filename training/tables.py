"""Cells and tables of a report in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from training.proportions import loss, wilson


def accuracy(hits: Tensor) -> str:
    """Return the share of ``hits (clips,)`` and its interval, in percent."""
    right = int(hits.sum())
    low, high = wilson(right, len(hits))
    return f"{100 * right / len(hits):.1f} ({100 * low:.1f}-{100 * high:.1f})"


def loss_of(before: Tensor, after: Tensor) -> str:
    """Return the points of accuracy that are lost, and their standard error.

    Args:
        before, after: whether each clip ``(clips,)`` is classified right; the same clips.
    """
    points, error = loss(before, after)
    return f"{100 * points:.1f} ± {100 * error:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

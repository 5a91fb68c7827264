"""Cells and tables of a report in Markdown, and where they stand in a document."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from server.errors import ConfigError
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


def replaced(document: str, name: str, content: str) -> str:
    """Return ``document`` with ``content`` between its lines `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ConfigError: it does not have each of them once, in this order.
    """
    begin = f"<!-- {name} -->\n"
    end = f"<!-- /{name} -->\n"
    before, *others = document.split(begin)
    if len(others) != 1 or others[0].count(end) != 1:
        raise ConfigError(f"a document needs one line {begin.strip()} and then {end.strip()}")
    after = others[0].split(end)[1]
    return f"{before}{begin}{content}\n{end}{after}"

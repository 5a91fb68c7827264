"""The classes of a sound or a video by the mean scores of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Scored(Protocol):
    """What a model says of one window: its best classes, best first, and their scores."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Indices of the classes."""

    @property
    def scores(self) -> tuple[float, ...]:
        """One for each of the classes."""


def best_classes(
    windows: Sequence[Scored],
    top_k: int,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the ``top_k`` best classes by their mean scores, best first, and these scores.

    Args:
        windows: of one sound or video, with all classes each, unless there is one window.
    """
    if len(windows) == 1:
        return windows[0].classes[:top_k], windows[0].scores[:top_k]
    scores = np.zeros((len(windows), len(windows[0].classes)))
    for row, window in zip(scores, windows, strict=True):
        row[list(window.classes)] = window.scores
    means = scores.mean(axis=0)
    best = np.argsort(-means, kind="stable")[:top_k]
    return tuple(best.tolist()), tuple(means[best].tolist())

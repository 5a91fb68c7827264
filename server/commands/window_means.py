"""Accuracy over files of one window or several, whose scores are averaged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class WindowMeans:
    """Averages the scores of each file's windows, and counts the files whose best class is right.

    The windows of a file follow one another, perhaps in several batches; only the sum of the
    latest file is kept.
    """

    def __init__(self) -> None:
        self._hits = 0
        self._item = -1
        self._label = -1
        self._sum: npt.NDArray[np.floating] | None = None

    def add(
        self,
        items: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        scores: npt.NDArray[np.floating],
    ) -> None:
        """Add one batch of windows.

        Args:
            items: index of the file of each window, ascending, ``(B,)``.
            labels: the right class of each, ``(B,)``.
            scores: ``(B, classes)``.
        """
        for item, label, row in zip(items.tolist(), labels.tolist(), scores, strict=True):
            if item == self._item:
                assert self._sum is not None
                self._sum = self._sum + row
                continue
            self._hits = self.hits()
            self._item = item
            self._label = label
            self._sum = row

    def hits(self) -> int:
        """Return the number of files so far whose class with the highest mean is the right one."""
        if self._sum is None:
            return self._hits
        return self._hits + int(self._sum.argmax() == self._label)

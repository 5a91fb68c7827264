"""Speeds of schedules, from batches that ran under each of them, one schedule after the other.

A change of the machine's speed then affects all schedules alike. Times are seconds of each batch,
for one image or window.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


def in_turn(items: Sequence[T], number: int) -> list[T]:
    """Return ``items`` in their order, beginning with another one for each batch.

    The first pass after decoding is slower: threads of the decoder still spin.

    Args:
        items: what a batch runs under.
        number: of the batch.
    """
    first = number % len(items)
    return [*items[first:], *items[:first]]


def full_batches(sizes: Sequence[int]) -> list[int]:
    """Return the indices of the batches that count for a speed.

    A last batch that is not full runs at another speed; one that is alone has no other.
    """
    largest = max(sizes)
    return [index for index, size in enumerate(sizes) if size == largest]


def images_per_second(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the images or windows per second: the median of the full batches."""
    return 1 / statistics.median(seconds[index] for index in full_batches(sizes))


def speedups(
    sizes: Sequence[int], before: Sequence[float], after: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return how many times faster each full batch is, ``(K,)``.

    Args:
        sizes: of the batches.
        before: times of the baseline.
        after: times of the schedule.
    """
    full = full_batches(sizes)
    return np.asarray(before, np.float64)[full] / np.asarray(after, np.float64)[full]

"""How often merging leaves the class of r=0, and which margin tells where it does not.

Arithmetic over what a model says of the same images under one schedule and at r=0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

TARGET = 0.999  # of the images whose class is to be that of r=0
_RISK = 0.05  # that a bound does not hold
_HALVINGS = 60


@dataclass(frozen=True)
class Margin:
    """A margin between the two best probabilities, below which an image runs again at r=0.

    All shares are from 0 to 1.

    Attributes:
        shown: share of images whose class is that of r=0, at least, with 95 % certainty.
        agreement: the same, of the images that were measured.
        second_passes: of the images.
    """

    margin: float
    shown: float
    agreement: float
    second_passes: float


def best_and_margin(
    logits: Tensor,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the best class of each image, and by how much its probability exceeds the second.

    Args:
        logits: float32 ``(B, classes)``, of at least two classes.

    Returns:
        Both ``(B,)``.
    """
    best = logits.float().softmax(dim=-1).topk(2)
    probabilities = best.values.double()  # in which the server subtracts
    margins = probabilities[:, 0] - probabilities[:, 1]
    return best.indices[:, 0].cpu().numpy(), margins.cpu().numpy()


def choose_margin(
    margins: npt.NDArray[np.floating], agrees: npt.NDArray[np.bool_], target: float = TARGET
) -> Margin:
    """Return the smallest margin that shows that at least ``target`` of images have r=0's class.

    Where there are too few images to show it, it is the smallest with which none of them differs.

    Args:
        margins: of each image between its two best probabilities, ``(N,)``, N at least 1.
        agrees: whether its class is that of r=0, ``(N,)``.
    """
    images = len(margins)
    # In float32 no number may lie between two margins.
    margins = np.asarray(margins, np.float64)
    wrong = np.sort(margins[~agrees])[::-1]
    allowed = _most_differing(images, target)
    margin = 0.0
    if len(wrong) > allowed:
        # Just above: an image runs again if its margin is below this one. None is above 1.
        margin = min(float(np.nextafter(float(wrong[allowed]), math.inf)), 1.0)
    again = margins < margin
    differing = int((~agrees & ~again).sum())
    return Margin(
        margin=margin,
        shown=1 - upper_bound(differing, images),
        agreement=1 - differing / images,
        second_passes=float(again.mean()),
    )


def _most_differing(images: int, target: float) -> int:
    """Return how many of ``images`` may differ so that ``target`` is shown; 0 if none may."""
    differing = 0
    while differing < images and 1 - upper_bound(differing + 1, images) >= target:
        differing += 1
    return differing


def agreement_interval(agrees: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the share of images that agree, each from 0 to 1.

    It is that of Clopper and Pearson, which holds at least so often, also where nearly all agree.

    Args:
        agrees: whether the class of each image is that of r=0, ``(N,)``, N at least 1.
    """
    images = len(agrees)
    differing = int((~agrees).sum())
    low = 1 - upper_bound(differing, images, _RISK / 2)
    high = 1 - lower_bound(differing, images, _RISK / 2)
    return low, high


def upper_bound(hits: int, count: int, risk: float = _RISK) -> float:
    """Return what a share is at most, with certainty ``1 - risk`` (Clopper and Pearson, 1934).

    Args:
        hits: of ``count``, which is at least 1.
        risk: that the share is larger.
    """
    if hits == count:
        return 1.0

    def is_probable(share: float) -> bool:
        return _at_most(hits, count, share) > risk

    return _largest(is_probable, hits / count, 1.0)


def lower_bound(hits: int, count: int, risk: float = _RISK) -> float:
    """Return what a share is at least; the counterpart of `upper_bound`."""
    if hits == 0:
        return 0.0

    def is_improbable(share: float) -> bool:
        return 1 - _at_most(hits - 1, count, share) <= risk

    return _largest(is_improbable, 0.0, hits / count)


def _largest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return the largest share from ``low`` to ``high`` for which ``holds``, as it does below."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return high


def _at_most(hits: int, count: int, share: float) -> float:
    """Return how probable at most ``hits`` of ``count`` are, by the binomial distribution."""
    if share in (0.0, 1.0):
        return 1.0 - share
    factorials = _log_factorials(count)
    numbers = np.arange(hits + 1)
    ways = factorials[count] - factorials[numbers] - factorials[count - numbers]
    logarithms = ways + numbers * math.log(share) + (count - numbers) * math.log1p(-share)
    return float(np.exp(logarithms).sum())


@functools.cache
def _log_factorials(count: int) -> npt.NDArray[np.float64]:
    """Return the logarithms of 0! to ``count``!."""
    logarithms = np.log(np.arange(1, count + 1, dtype=np.float64))
    return np.concatenate([[0.0], np.cumsum(logarithms)])

"""How often merging leaves the class of r=0, and which margin tells where it does not.

Arithmetic over what a model says of the same images under one schedule and at r=0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from server.commands.proportions import exact_interval, upper_bound

TARGET = 0.999  # of the images whose class is to be that of r=0


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

    It is that of Clopper and Pearson, because nearly all agree.

    Args:
        agrees: whether the class of each image is that of r=0, ``(N,)``, N at least 1.
    """
    low, high = exact_interval(int((~agrees).sum()), len(agrees))
    return 1 - high, 1 - low

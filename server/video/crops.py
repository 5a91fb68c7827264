"""Resize an image and cut the crops of a clip from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.imaging.resize import Size, crop_start, resize_part, resize_short_side
from server.media.transforms import VideoTransform


def cut_crops(image: Image.Image, transform: VideoTransform) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the crops of ``image``, each ``uint8 (C, H, W)``.

    Its shorter side is resized to ``transform.resize``, which is not smaller than a crop. Nothing
    is computed but the crops.
    """
    size = (transform.height, transform.width)
    resized = resize_short_side((image.height, image.width), transform.resize)
    resample = Image.Resampling[transform.interpolation.upper()]
    if transform.channels == 1:
        image = image.convert("L")
    for start in crop_starts(resized, size, transform.crops):
        yield resize_part(image, resized, start, size, resample)


def crop_starts(resized: Size, size: Size, crops: int) -> list[tuple[int, int]]:
    """Return ``(top, left)`` of each of the 1 or 3 crops of ``size`` in ``resized``.

    One lies in the middle. Three lie in the middle of the shorter side, and at the start, the
    middle and the end of the longer one (Non-local Neural Networks, arXiv 1711.07971, section 4.1).
    """
    top, left = (crop_start(side, part) for side, part in zip(resized, size, strict=True))
    if crops == 1:
        return [(top, left)]
    height, width = resized
    if height > width:
        return [(0, left), (top, left), (height - size[0], left)]
    return [(top, 0), (top, left), (top, width - size[1])]

"""From a decoded image to a model's pixels: timm's evaluation transform with Pillow alone.

The API process imports no torch, and so neither torchvision nor timm, whose rounding this file
repeats (`timm.data.transforms_imagenet_eval`, `torchvision.transforms.functional.resize` and
``center_crop``). A test compares the two over random sizes. Where nothing is cropped they are equal
byte for byte. Where a crop follows, only its pixels are computed, from positions that Pillow holds
in float32: less than 0.5% of 224 x 224 values differ, and those by 1 of 255, rarely 2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.imaging.transform import Transform

Size = tuple[int, int]  # (height, width), as torchvision counts, not as Pillow does


REDUCED_AT_LEAST = 3  # times what it is resized to


def resize_and_crop(image: Image.Image, transform: Transform) -> npt.NDArray[np.uint8]:
    """Resize and crop ``image``, of mode ``RGB`` or ``L`` as the model's channels ask, into ``uint8 (C, H, W)``."""
    channels, *target = transform.size
    size = target[0], target[1]
    resized = resized_size((image.height, image.width), transform)
    resample = Image.Resampling[transform.interpolation.upper()]
    if (
        resample != Image.Resampling.NEAREST
        and resized[0] >= size[0]
        and resized[1] >= size[1]
        and resized != size
    ):
        cropped = resize_middle(image, resized, size, resample)
    else:
        fill = transform.fill[:channels] if transform.crop_mode == "border" else (0,) * channels
        cropped = center_crop(image.resize(resized[::-1], resample), size, fill)
    pixels = np.asarray(cropped, np.uint8).reshape(*size, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize_middle(
    image: Image.Image, resized: Size, size: Size, resample: Image.Resampling
) -> Image.Image:
    """The middle ``size`` of ``image`` resized to ``resized``, without computing what lies around it.

    Along the rows first, as Pillow does. From its version 13 it begins with the columns of much
    taller images, which changes what is cut off at 0 and 255 in between; here all versions give the
    same.
    """
    (top, bottom), (left, right) = (
        (first * side / whole, min((first + part) * side / whole, side))
        for side, whole, part in zip((image.height, image.width), resized, size, strict=True)
        for first in [crop_start(whole, part)]
    )
    columns = image.resize((size[1], image.height), resample, box=(left, 0, right, image.height))
    return columns.resize(size[::-1], resample, box=(0, top, size[1], bottom))


def dct_reduction(size: tuple[int, int], transform: Transform) -> int:
    """By how much, 1, 2, 4 or 8, a JPEG of ``size`` may be reduced while it is decoded, by dropping high frequencies.

    So much that it keeps at least `REDUCED_AT_LEAST` times the sides it is then resized to,
    whichever way round it stands, and only where both sides divide, so that no pixel moves. Values
    then differ from timm's by 0.5 of 255 on average on photographs, which a test keeps.
    """
    if (
        transform.interpolation == "nearest"
    ):  # takes single pixels, which reducing would have averaged
        return 1
    for reduction in (8, 4, 2):
        reduced = size[0] // reduction, size[1] // reduction
        if not any(side % reduction for side in size) and all(
            kept >= REDUCED_AT_LEAST * side
            for way in (reduced, reduced[::-1])
            for kept, side in zip(way, resized_size(way, transform), strict=True)
        ):
            return reduction
    return 1


def resized_size(size: Size, transform: Transform) -> Size:
    """What an image of ``size`` is resized to before it is cropped."""
    target = tuple(math.floor(side / transform.crop_pct) for side in transform.size[1:])
    if transform.crop_mode == "squash":
        return target[0], target[1]
    if transform.crop_mode == "center" and target[0] == target[1]:
        short, long = sorted(size)
        scaled = int(target[0] * long / short)
        return (target[0], scaled) if size[0] <= size[1] else (scaled, target[0])
    ratios = size[0] / target[0], size[1] / target[1]
    ratio = max(ratios) if transform.crop_mode == "border" else min(ratios)
    # timm fails on an image so narrow that a side rounds to 0; a server keeps one pixel of it.
    return max(round(size[0] / ratio), 1), max(round(size[1] / ratio), 1)


def center_crop(image: Image.Image, size: Size, fill: tuple[int, ...]) -> Image.Image:
    """The middle of ``image``, with a border of colour ``fill`` where it is smaller than ``size``."""
    height = max(image.height, size[0])
    width = max(image.width, size[1])
    if (height, width) != (image.height, image.width):
        canvas = Image.new(image.mode, (width, height), fill if len(fill) > 1 else fill[0])
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = canvas
    top = crop_start(height, size[0])
    left = crop_start(width, size[1])
    return image.crop((left, top, left + size[1], top + size[0]))


def crop_start(side: int, part: int) -> int:
    """Where the middle ``part`` of ``side`` begins, rounded as torchvision does."""
    return round((side - part) / 2)

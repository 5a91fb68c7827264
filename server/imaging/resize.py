"""Resize and crop a decoded image: timm's evaluation transform with Pillow alone.

The API process does not import torch, so it has neither torchvision nor timm. This module repeats
their rounding (`timm.data.transforms_imagenet_eval`, `torchvision.transforms.functional.resize` and
``center_crop``). A test compares the two over random sizes. Without a crop they are equal byte for
byte. With a crop, only its pixels are computed, from positions that Pillow holds in float32: less
than 0.5% of 224 x 224 values differ, and those by 1 of 255, rarely 2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.media.transforms import ImageTransform

Size = tuple[int, int]  # (height, width) as in torchvision; Pillow has (width, height)

# Smallest ratio of a side of a reduced JPEG to the side that it is then resized to.
MIN_REDUCED_RATIO = 3
_DCT_REDUCTIONS = (8, 4, 2)  # that libjpeg offers, largest first


def resize_and_crop(image: Image.Image, transform: ImageTransform) -> npt.NDArray[np.uint8]:
    """Resize and crop ``image``, of mode ``RGB`` or ``L``, into ``uint8 (C, H, W)``.

    The mode must have as many channels as ``transform``.
    """
    channels, height, width = transform.size
    size = (height, width)
    resized = resized_size((image.height, image.width), transform)
    resample = Image.Resampling[transform.interpolation.upper()]
    crops_only = resized != size and resized[0] >= height and resized[1] >= width
    if crops_only and resample != Image.Resampling.NEAREST:
        cropped = resize_center(image, resized, size, resample)
    else:
        whole = image.resize(resized[::-1], resample)
        cropped = center_crop(whole, size, border_colour(transform))
    pixels = np.asarray(cropped, np.uint8)
    channels_last = pixels.reshape(height, width, channels)
    channels_first = channels_last.transpose(2, 0, 1)
    return np.ascontiguousarray(channels_first)


def border_colour(transform: ImageTransform) -> tuple[int, ...]:
    """Return the colour of the border around an image that is smaller than the crop."""
    channels = transform.size[0]
    if transform.crop_mode == "border":
        return transform.fill[:channels]
    return (0,) * channels


def resize_center(
    image: Image.Image,
    resized: Size,
    size: Size,
    resample: Image.Resampling,
) -> Image.Image:
    """Return the central ``size`` of ``image`` resized to ``resized``, and compute nothing else."""
    start = (crop_start(resized[0], size[0]), crop_start(resized[1], size[1]))
    return resize_part(image, resized, start, size, resample)


def resize_part(
    image: Image.Image,
    resized: Size,
    start: tuple[int, int],
    size: Size,
    resample: Image.Resampling,
) -> Image.Image:
    """Return the part ``size`` from ``start`` (top, left) on of ``image`` resized to ``resized``.

    Resizes the rows first, as Pillow does. From version 13 on Pillow begins with the columns of
    much taller images, which changes what is clipped at 0 and 255 in between. This function gives
    the same result with all versions.
    """
    height, width = size
    top, bottom = source_interval(image.height, resized[0], start[0], height)
    left, right = source_interval(image.width, resized[1], start[1], width)
    narrow = image.resize(
        (width, image.height),
        resample,
        box=(left, 0, right, image.height),
    )
    return narrow.resize((width, height), resample, box=(0, top, width, bottom))


def source_interval(side: int, resized: int, start: int, cropped: int) -> tuple[float, float]:
    """Return which part of ``side`` becomes ``cropped`` pixels from ``start`` on at ``resized``."""
    first = start * side / resized
    last = (start + cropped) * side / resized
    return first, min(last, side)


def dct_reduction(size: tuple[int, int], transform: ImageTransform) -> int:
    """Return the factor, 1, 2, 4 or 8, by which to reduce a JPEG of ``size`` during decoding.

    A reduced decoding drops high frequencies. The factor is the largest that divides both sides, so
    that no pixel moves, and keeps at least `MIN_REDUCED_RATIO` times the sides that the image is
    then resized to, in either orientation. Values then differ from timm's by 0.5 of 255 on average
    on photographs, which a test checks.
    """
    if transform.interpolation == "nearest":
        # It takes single pixels, which a reduced decoding averages.
        return 1
    for reduction in _DCT_REDUCTIONS:
        divides = size[0] % reduction == 0 and size[1] % reduction == 0
        reduced = (size[0] // reduction, size[1] // reduction)
        if divides and _is_large_enough(reduced, transform):
            return reduction
    return 1


def _is_large_enough(reduced: Size, transform: ImageTransform) -> bool:
    """Return whether a reduced image has `MIN_REDUCED_RATIO` times the sides it is resized to."""
    for oriented in (reduced, reduced[::-1]):
        resized = resized_size(oriented, transform)
        for side, resized_side in zip(oriented, resized, strict=True):
            if side < MIN_REDUCED_RATIO * resized_side:
                return False
    return True


def resized_size(size: Size, transform: ImageTransform) -> Size:
    """Return the size that an image of ``size`` is resized to before it is cropped."""
    height, width = size
    target_height = math.floor(transform.size[1] / transform.crop_pct)
    target_width = math.floor(transform.size[2] / transform.crop_pct)
    if transform.crop_mode == "squash":
        return target_height, target_width
    if transform.crop_mode == "center" and target_height == target_width:
        return resize_short_side(size, target_height)
    height_ratio = height / target_height
    width_ratio = width / target_width
    if transform.crop_mode == "border":
        ratio = max(height_ratio, width_ratio)
    else:
        ratio = min(height_ratio, width_ratio)
    # timm fails on an image so narrow that a side rounds to 0; a server keeps one pixel of it.
    resized_height = max(round(height / ratio), 1)
    resized_width = max(round(width / ratio), 1)
    return resized_height, resized_width


def resize_short_side(size: Size, target: int) -> Size:
    """Return ``size`` scaled so that its short side is ``target``."""
    short, long = sorted(size)
    scaled = int(target * long / short)
    height, width = size
    if height <= width:
        return target, scaled
    return scaled, target


def center_crop(image: Image.Image, size: Size, fill: tuple[int, ...]) -> Image.Image:
    """Return the center of ``image``, with a border of colour ``fill`` where it is smaller."""
    height = max(image.height, size[0])
    width = max(image.width, size[1])
    if (height, width) != (image.height, image.width):
        colour = fill if len(fill) > 1 else fill[0]
        canvas = Image.new(image.mode, (width, height), colour)
        left = (width - image.width) // 2
        top = (height - image.height) // 2
        canvas.paste(image, (left, top))
        image = canvas
    top = crop_start(height, size[0])
    left = crop_start(width, size[1])
    return image.crop((left, top, left + size[1], top + size[0]))


def crop_start(side: int, cropped: int) -> int:
    """Return where the central ``cropped`` pixels of ``side`` begin, rounded as in torchvision."""
    return round((side - cropped) / 2)

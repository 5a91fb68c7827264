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

from server.imaging.resampling import Picture, resample_planes
from server.media.transforms import ImageTransform

Size = tuple[int, int]  # (height, width) as in torchvision; Pillow has (width, height)

# Smallest ratio of a side of a reduced JPEG to the side that it is then resized to.
MIN_REDUCED_RATIO = 3
_DCT_REDUCTIONS = (8, 4, 2)  # that libjpeg offers, largest first


def resize_and_crop(image: Picture, transform: ImageTransform) -> npt.NDArray[np.uint8]:
    """Resize and crop ``image`` into ``uint8 (C, H, W)``.

    It must have as many channels as ``transform``.
    """
    _, height, width = transform.size
    size = (height, width)
    source = _size_of(image)
    resized = resized_size(source, transform)
    resample = Image.Resampling[transform.interpolation.upper()]
    if is_part(source, transform):
        start = (crop_start(resized[0], height), crop_start(resized[1], width))
        return resize_part(image, resized, start, size, resample)
    whole = _to_image(image).resize(resized[::-1], resample)
    return to_planes(center_crop(whole, size, border_colour(transform)))


def is_part(source: Size, transform: ImageTransform) -> bool:
    """Return whether `resize_part` gives the pixels of ``transform`` from an image of ``source``.

    It does if they are a part of the resized image; or all of it, unless that is much taller than
    they are, for which version 13 of Pillow, and so timm, begins with the columns.
    """
    if transform.interpolation == "nearest":
        return False
    _, height, width = transform.size
    resized = resized_size(source, transform)
    if resized == (height, width):
        return source[0] * width <= source[1] * height
    return resized[0] >= height and resized[1] >= width


def _size_of(image: Picture) -> Size:
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return image.height, image.width


def _to_image(image: Picture) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return image


def to_planes(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels of ``image``, of mode ``RGB`` or ``L``, as ``uint8 (C, H, W)``."""
    pixels = np.asarray(image, np.uint8)
    channels_last = pixels.reshape(image.height, image.width, -1)
    return np.ascontiguousarray(channels_last.transpose(2, 0, 1))


def border_colour(transform: ImageTransform) -> tuple[int, ...]:
    """Return the colour of the border around an image that is smaller than the crop."""
    channels = transform.size[0]
    if transform.crop_mode == "border":
        return transform.fill[:channels]
    return (0,) * channels


def resize_part(
    image: Picture,
    resized: Size,
    start: tuple[int, int],
    size: Size,
    resample: Image.Resampling,
) -> npt.NDArray[np.uint8]:
    """Return the part ``size`` from ``start`` (top, left) on of ``image`` resized to ``resized``.

    It is ``uint8 (C, H, W)``. Resizes the rows first, as Pillow does. From version 13 on Pillow
    begins with the columns of much taller images, which changes what is clipped at 0 and 255 in
    between. This function gives the same result with all versions.

    Args:
        resample: a filter other than ``NEAREST``.
    """
    height, width = size
    source = _size_of(image)
    top, bottom = source_interval(source[0], resized[0], start[0], height)
    left, right = source_interval(source[1], resized[1], start[1], width)
    planes = resample_planes(image, size, (left, top, right, bottom), resample)
    if planes is not None:
        return planes
    narrow = _to_image(image).resize(
        (width, source[0]),
        resample,
        box=(left, 0, right, source[0]),
    )
    return to_planes(narrow.resize((width, height), resample, box=(0, top, width, bottom)))


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

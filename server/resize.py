"""From a decoded image to a model's pixels: timm's evaluation transform with Pillow alone, byte for byte.

The API process imports no torch, and so neither torchvision nor timm, whose rounding this file repeats
(`timm.data.transforms_imagenet_eval`, `torchvision.transforms.functional.resize` and ``center_crop``). A test compares
the two over random sizes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.messages import Transform

Size = tuple[int, int]  # (height, width), as torchvision counts, not as Pillow does


def resize_and_crop(image: Image.Image, transform: Transform) -> npt.NDArray[np.uint8]:
    """Resize and crop ``image``, of mode ``RGB`` or ``L`` as the model's channels ask, into ``uint8 (C, H, W)``."""
    channels, *target = transform.size
    resized = image.resize(
        resized_size((image.height, image.width), transform)[::-1], Image.Resampling[transform.interpolation.upper()]
    )
    fill = transform.fill[:channels] if transform.crop_mode == "border" else (0,) * channels
    cropped = center_crop(resized, (target[0], target[1]), fill)
    pixels = np.asarray(cropped, np.uint8).reshape(*target, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


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
    height, width = max(image.height, size[0]), max(image.width, size[1])
    if (height, width) != (image.height, image.width):
        canvas = Image.new(image.mode, (width, height), fill if len(fill) > 1 else fill[0])
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = canvas
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))

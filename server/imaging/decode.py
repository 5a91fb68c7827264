"""Decode an encoded image into the pixels that a model takes: size limits, colours and errors."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.errors import BadImage, RequestError, TooLarge
from server.imaging.container import StrippedImage
from server.imaging.formats import open_container
from server.imaging.orientation import apply_orientation, read_orientation
from server.imaging.resize import dct_reduction, resize_and_crop, resized_size
from server.imaging.transform import Transform

log = logging.getLogger("tome.decode")

# `check_size` enforces the limits of the settings, so Pillow's own limit is off. Pillow's warnings
# are meant for developers.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")
# Load all of Pillow's plugins now. Otherwise the first requests load them, in several threads.
Image.init()

# Scales 16 bits to 8: 65535 / 255.
_GREY_16_TO_8 = 257
_MAX_GREY_16 = 65535


def decode(
    body: bytes,
    transform: Transform,
    max_pixels: int,
    max_side: int,
) -> npt.NDArray[np.uint8]:
    """Decode the first frame of an image, upright, into ``uint8 (C, H, W)`` for ``transform``.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size; see
    `server.imaging.resize.dct_reduction`.

    Args:
        max_pixels, max_side: size limits, checked before a pixel is decoded.

    Raises:
        BadImage: the image is empty, corrupt or truncated.
        UnsupportedFormat: its content is in none of `FORMATS`.
        TooLarge: it exceeds a size limit, would exceed it when resized, or has too many parts.
    """
    if not body:
        raise BadImage("the body is empty; send an encoded image")
    stripped = open_container(body)
    if stripped.canvas:
        check_size(stripped.canvas, transform, max_pixels, max_side)
    try:
        file = io.BytesIO(stripped.body)
        with Image.open(file, formats=(stripped.format,)) as opened:
            check_size(opened.size, transform, max_pixels, max_side)
            image = _load_upright(opened, stripped, transform)
    except RequestError:
        raise
    except Exception as error:
        # Pillow raises exceptions of many types for broken files. Their texts are not for clients.
        log.debug("cannot decode an image: %r", error)
        raise BadImage("the image is corrupt or truncated") from None
    channels = transform.size[0]
    return resize_and_crop(convert(image, channels), transform)


def _load_upright(
    opened: Image.Image,
    stripped: StrippedImage,
    transform: Transform,
) -> Image.Image:
    """Decode the pixels of ``opened`` and rotate them upright."""
    orientation = stripped.orientation
    if stripped.format == "JPEG":
        reduction = dct_reduction(opened.size, transform)
        reduced_size = (opened.width // reduction, opened.height // reduction)
        opened.draft(None, reduced_size)
    elif stripped.format == "WEBP":
        orientation = read_orientation(opened.info.get("exif", b""))
    opened.load()
    return apply_orientation(opened, orientation)


def to_pixels(image: Image.Image, transform: Transform) -> npt.NDArray[np.uint8]:
    """Return the first frame of ``image``, a trusted one, upright, as ``uint8 (C, H, W)``."""
    image.load()
    orientation = read_orientation(image.info.get("exif", b""))
    upright = apply_orientation(image, orientation)
    channels = transform.size[0]
    return resize_and_crop(convert(upright, channels), transform)


def check_size(
    size: tuple[int, int],
    transform: Transform,
    max_pixels: int,
    max_side: int,
) -> None:
    """Refuse an image by its ``(width, height)`` alone. Raises `TooLarge`."""
    width, height = size
    dimensions = f"{width} x {height}"
    if max(width, height) > max_side:
        raise TooLarge(
            f"the image is {dimensions}; a side may have {max_side} pixels",
            limit=max_side,
        )
    count = width * height
    if count > max_pixels:
        raise TooLarge(
            f"the image is {dimensions}, {count} pixels; allowed are {max_pixels}",
            limit=max_pixels,
        )
    # The orientation is not known yet, so check both.
    for oriented in ((height, width), (width, height)):
        resized_height, resized_width = resized_size(oriented, transform)
        if resized_height * resized_width > max_pixels:
            raise TooLarge(
                f"the image is {dimensions}, too narrow to be resized to the model's input"
            )


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Convert ``image`` to mode ``L`` or ``RGB``, for 1 or 3 channels, over white."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = _paste_over_white(image)
    if image.mode == mode:
        return image
    return image.convert(mode)


def _paste_over_white(image: Image.Image) -> Image.Image:
    layer = image
    if image.mode != "RGBA":
        layer = image.convert("RGBA")
    background = Image.new("RGB", layer.size, "white")
    background.paste(layer, mask=layer)
    return background


def to_8_bits(grey: npt.NDArray[Any], rows: int = 256) -> npt.NDArray[np.uint8]:
    """Scale grey values from 0..65535 to 0..255 and round.

    Works on ``rows`` rows at a time: 64-bit integers of a whole image would take too much memory.
    """
    scaled = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), rows):
        bottom = top + rows
        wide = grey[top:bottom].astype(np.int64)
        clipped = np.clip(wide, 0, _MAX_GREY_16)
        rounded = clipped + _GREY_16_TO_8 // 2
        scaled[top:bottom] = rounded // _GREY_16_TO_8
    return scaled

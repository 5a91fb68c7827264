"""Decode an encoded image into the pixels that a model takes: size limits, colours and errors."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, ImageFile

from server.errors import BadImage, RequestError, TooLarge
from server.imaging.colours import convert, load_with_transparency
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

# One thread decodes an image, as in the other formats: --decode-threads limits their number.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Pixels of all parts of an AVIF file, as a multiple of those allowed for one: picture, alpha,
# layers, thumbnail.
_MAX_PICTURES = 8


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
    for canvas in stripped.canvases:
        check_size(canvas, transform, max_pixels, max_side)
    if sum(width * height for width, height in stripped.canvases) > _MAX_PICTURES * max_pixels:
        raise TooLarge("the image consists of too many pictures")
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
    opened: ImageFile.ImageFile,
    stripped: StrippedImage,
    transform: Transform,
) -> Image.Image:
    """Decode the pixels of ``opened`` and rotate them upright."""
    if stripped.format == "JPEG":
        reduction = dct_reduction(opened.size, transform)
        reduced_size = (opened.width // reduction, opened.height // reduction)
        opened.draft(None, reduced_size)
    image = load_with_transparency(opened, stripped)
    orientation = stripped.orientation
    if orientation is None:
        exif = opened.info.get("exif", b"")
        orientation = read_orientation([exif], opened.info.get("xmp", b""))
    return apply_orientation(image, orientation)


def to_pixels(
    image: npt.NDArray[np.uint8],
    transform: Transform,
) -> npt.NDArray[np.uint8]:
    """Return grey or RGB pixels, ``(H, W)`` or ``(H, W, 3)``, as ``uint8 (C, H, W)``."""
    channels = transform.size[0]
    return resize_and_crop(convert(Image.fromarray(image), channels), transform)


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

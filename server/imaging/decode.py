"""From the bytes of an encoded image to a model's pixels: limits, colours, and what is wrong with it."""

from __future__ import annotations

import io
import logging
import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.errors import BadImage, RequestError, TooLarge
from server.imaging.formats import open_container
from server.imaging.orientation import read_orientation, turn
from server.imaging.resize import dct_reduction, resize_and_crop, resized_size
from server.imaging.transform import Transform

log = logging.getLogger("tome.decode")

# Our own limits, tested before a pixel is decoded, take the place of Pillow's; its warnings are for
# developers.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # all at once and here, rather than by the first requests, in several threads
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(
    body: bytes, transform: Transform, max_pixels: int, max_side: int
) -> npt.NDArray[np.uint8]:
    """The first frame of an encoded image, upright, as ``uint8 (C, H, W)`` of ``transform``.

    A large JPEG is decoded at a half, a quarter or an eighth; see
    `server.imaging.resize.dct_reduction`.

    Args:
        max_pixels, max_side: largest image that is decoded; tested before any pixel is.

    Raises:
        BadImage: it is empty, corrupt or truncated.
        UnsupportedFormat: its content is none of `FORMATS`.
        TooLarge: it has, or would have when resized, too many pixels; or it has too many parts.
    """
    if not body:
        raise BadImage("the body is empty; send an encoded image")
    container = open_container(body)
    if container.canvas:
        check_size(container.canvas, transform, max_pixels, max_side)
    try:
        with Image.open(io.BytesIO(container.body), formats=(container.form,)) as opened:
            check_size(opened.size, transform, max_pixels, max_side)
            orientation = container.orientation
            if container.form == "JPEG":
                reduction = dct_reduction(opened.size, transform)
                opened.draft(None, (opened.width // reduction, opened.height // reduction))
            elif container.form == "WEBP":
                orientation = read_orientation(opened.info.get("exif", b""))
            opened.load()
            image = turn(opened, orientation)
    except RequestError:
        raise
    except (
        Exception
    ) as error:  # broken files make Pillow raise many types, whose texts are not for clients
        log.debug("an image could not be decoded: %r", error)
        raise BadImage("the image is corrupt or truncated") from None
    return resize_and_crop(convert(image, transform.size[0]), transform)


def to_pixels(image: Image.Image, transform: Transform) -> npt.NDArray[np.uint8]:
    """The first frame of ``image``, which is trusted, upright, as ``uint8 (C, H, W)``."""
    image.load()
    upright = turn(image, read_orientation(image.info.get("exif", b"")))
    return resize_and_crop(convert(upright, transform.size[0]), transform)


def check_size(size: tuple[int, int], transform: Transform, max_pixels: int, max_side: int) -> None:
    """Refuse an image by its header alone. Raises `TooLarge`."""
    width, height = size
    if max(width, height) > max_side:
        raise TooLarge(
            f"the image is {width} x {height}; a side may have {max_side} pixels", limit=max_side
        )
    if width * height > max_pixels:
        count = width * height
        raise TooLarge(
            f"the image is {width} x {height}, {count} pixels; allowed are {max_pixels}",
            limit=max_pixels,
        )
    # Either way round, because it may be turned upright first.
    resized = max(
        (resized_size(size, transform) for size in ((height, width), (width, height))),
        key=math.prod,
    )
    if resized[0] * resized[1] > max_pixels:
        raise TooLarge(
            f"the image is {width} x {height}, too narrow to be resized to what the model takes"
        )


def convert(image: Image.Image, channels: int) -> Image.Image:
    """``image`` in the mode of a model of ``channels`` channels: what is transparent lies over white."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith(
        "I"
    ):  # 16 bits of grey, which Pillow would cut off at 255 instead of scaling
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    elif image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer)
    return image if image.mode == mode else image.convert(mode)


def to_8_bits(grey: npt.NDArray[Any], rows: int = 256) -> npt.NDArray[np.uint8]:
    """Scale grey of 0 to 65535 to 0 to 255, rounded; ``rows`` at a time, since wide integers of all would be large."""
    scaled = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), rows):
        strip = np.clip(grey[top : top + rows].astype(np.int64), 0, 65535)
        scaled[top : top + rows] = (strip + 128) // 257
    return scaled

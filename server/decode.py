"""From the bytes of an encoded image to a model's pixels: which formats are allowed, what is refused, colours."""

from __future__ import annotations

import io
import logging
import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from server.errors import BadImage, RequestError, TooLarge, UnsupportedFormat
from server.messages import Transform
from server.resize import resize_and_crop, resized_size

log = logging.getLogger("tome.decode")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ALLOWED = "allowed are JPEG, PNG, WebP, GIF and BMP"
_EXIF_ORIENTATION = 0x0112
# EXIF 2.32, section 4.6.4: how to turn the stored image so that it stands upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Our own limits, tested before a pixel is decoded, take the place of Pillow's; its warnings are for developers.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # all at once and here, rather than by the first requests, in several threads
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(body: bytes, transform: Transform, max_pixels: int, max_side: int) -> npt.NDArray[np.uint8]:
    """The first frame of an encoded image, upright, as ``uint8 (C, H, W)`` of ``transform``.

    Args:
        max_pixels, max_side: largest image that is decoded; tested before any pixel is.

    Raises:
        BadImage: it is empty, corrupt or truncated.
        UnsupportedFormat: its content is none of `FORMATS`.
        TooLarge: it has, or would have when resized, too many pixels.
    """
    if not body:
        raise BadImage("the body is empty; send an encoded image")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as opened:
            check_size(opened.size, transform, max_pixels, max_side)
            opened.load()
            image = upright(opened)
            image.load()
    except RequestError:
        raise
    except UnidentifiedImageError:
        if looks_allowed(body):
            raise BadImage("the image is corrupt or truncated") from None
        raise UnsupportedFormat(f"the body is not an image of a supported format; {_ALLOWED}") from None
    except Exception as error:  # broken files make Pillow raise many types, whose texts are not for clients
        log.debug("an image could not be decoded: %r", error)
        raise BadImage("the image is corrupt or truncated") from None
    return resize_and_crop(convert(image, transform.size[0]), transform)


def to_pixels(image: Image.Image, transform: Transform) -> npt.NDArray[np.uint8]:
    """The first frame of ``image``, upright, as ``uint8 (C, H, W)``; what timm's evaluation transform gives."""
    image.load()
    return resize_and_crop(convert(upright(image), transform.size[0]), transform)


def check_size(size: tuple[int, int], transform: Transform, max_pixels: int, max_side: int) -> None:
    """Refuse an image by its header alone. Raises `TooLarge`."""
    width, height = size
    if max(width, height) > max_side:
        raise TooLarge(f"the image is {width} x {height}; a side may have {max_side} pixels", limit=max_side)
    if width * height > max_pixels:
        count = width * height
        raise TooLarge(f"the image is {width} x {height}, {count} pixels; allowed are {max_pixels}", limit=max_pixels)
    # Either way round, because it may be turned upright first.
    resized = max((resized_size(size, transform) for size in ((height, width), (width, height))), key=math.prod)
    if resized[0] * resized[1] > max_pixels:
        raise TooLarge(f"the image is {width} x {height}, too narrow to be resized to what the model takes")


def upright(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF orientation says. Broken EXIF data does not make an image unreadable."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def convert(image: Image.Image, channels: int) -> Image.Image:
    """``image`` in the mode of a model of ``channels`` channels: what is transparent lies over white."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255 instead of scaling
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
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


def looks_allowed(body: bytes) -> bool:
    """Whether ``body`` begins as an allowed format does: then it is a broken image rather than something else."""
    if body.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")):
        return True
    if body.startswith(b"RIFF"):
        return body[8:12] == b"WEBP"
    # "BM" alone begins many a text: a bitmap also has a header of a known size.
    return body.startswith(b"BM") and int.from_bytes(body[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)

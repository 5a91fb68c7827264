"""Decode an encoded image into the pixels that a model takes: formats, size limits and errors.

The content says which format it is. Profiles, comments, thumbnails, EXIF and further images are
removed from a JPEG, PNG or GIF before Pillow reads it. No pixel depends on them, and they let a
small body use much memory or time: text and profiles that inflate, EXIF entries that all point to
the same bytes, and millions of empty parts, each a step of Python that blocks all threads (20 MB of
them: 4 seconds). Only libwebp parses a WebP, and a BMP has no such parts. An AVIF file may say one
size and have data of another.
"""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import AvifImagePlugin, Image, ImageFile, features

from server.errors import BadImage, RequestError, TooLarge, UnsupportedFormat
from server.imaging.avif import is_avif, open_avif
from server.imaging.bmp import is_bmp, open_bmp
from server.imaging.colours import convert, correct_transparency
from server.imaging.container import Frame, StrippedImage
from server.imaging.foreign import name_format
from server.imaging.gif import strip_gif
from server.imaging.jpeg import strip_jpeg
from server.imaging.orientation import UPRIGHT, apply_orientation, read_orientation
from server.imaging.png import SIGNATURE as _PNG_SIGNATURE
from server.imaging.png import strip_png
from server.imaging.resampling import choose_library
from server.imaging.resize import dct_reduction, is_part, resize_and_crop, resized_size
from server.imaging.webp import open_webp
from server.media.transforms import ImageTransform

log = logging.getLogger("tome.decode")

# Pillow has AVIF only where it was built with libavif.
_HAS_AVIF = bool(features.check("avif"))
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", *(["AVIF"] if _HAS_AVIF else []))
SUPPORTED = f"allowed are JPEG, PNG, WebP, GIF{', BMP and AVIF' if _HAS_AVIF else ' and BMP'}"

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
    transform: ImageTransform,
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
    pixels = _decode_usual_jpeg(stripped, transform, max_pixels, max_side)
    if pixels is not None:
        return pixels
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
    return _to_pixels(image, transform)


def _decode_usual_jpeg(
    stripped: StrippedImage,
    transform: ImageTransform,
    max_pixels: int,
    max_side: int,
) -> npt.NDArray[np.uint8] | None:
    """Decode an upright JPEG of the usual kind; None where Pillow has to decode or resize it.

    Raises:
        TooLarge: it exceeds a size limit.
    """
    frame = stripped.frame
    if frame is None or stripped.orientation != UPRIGHT:
        return None
    size = (frame.width, frame.height)
    check_size(size, transform, max_pixels, max_side)
    # Pillow would have to copy the pixels before it resizes them.
    if choose_library() is None or not is_part(size[::-1], transform):
        return None
    reduction = dct_reduction(size, transform)
    decoded = decode_frame(stripped.body, frame, transform.size[0], reduction)
    return None if decoded is None else resize_and_crop(decoded, transform)


def decode_frame(
    body: bytes,
    frame: Frame,
    channels: int,
    reduction: int = 1,
) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of a JPEG as ``uint8 (H, W, C)``; None where Pillow has to decode them.

    libjpeg-turbo decodes them without Pillow's reading in Python. Pillow uses the same library in
    the same way, so the pixels are equal. Whatever the library remarks upon, be it only a byte too
    many, is left to Pillow, which says what is an error.

    Args:
        body: without metadata.
        frame: its header; its size is within the limits.
        channels: 1 or 3.
        reduction: 1, 2, 4 or 8, which divides its sides: they become so many times shorter.
    """
    if channels < frame.components:
        # Pillow computes grey from red, green and blue.
        return None
    height = frame.height // reduction
    width = frame.width // reduction
    colours = "RGB" if channels == 3 else "GRAY"
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            body, colours, min_height=height, min_width=width, strict=True
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, channels) else None


def open_container(body: bytes) -> StrippedImage:
    """Detect the format of ``body`` and remove what its pixels do not need.

    Raises:
        UnsupportedFormat: it has the signature of none of `FORMATS`, or is a bitmap of a type that
            is not decoded.
        BadImage: it ends before its pixels begin.
        TooLarge: it consists of too many parts.
    """
    try:
        match sniff(body):
            case "JPEG":
                return strip_jpeg(body)
            case "PNG":
                return strip_png(body)
            case "GIF":
                return strip_gif(body)
            case "WEBP":
                return open_webp(body)
            case "BMP":
                return open_bmp(body)
            case "AVIF":
                return open_avif(body)
    except IndexError:
        raise BadImage("the image is corrupt or truncated") from None
    name = name_format(body)
    found = f"{name}, which is not supported" if name else "not an image of a supported format"
    raise UnsupportedFormat(f"the body is {found}; {SUPPORTED}")


def sniff(body: bytes) -> str | None:
    """Return the format in `FORMATS` whose signature ``body`` has, or None."""
    if body.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if body.startswith(_PNG_SIGNATURE):
        return "PNG"
    if body.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "WEBP"
    if is_bmp(body):
        return "BMP"
    if _HAS_AVIF and is_avif(body):
        return "AVIF"
    return None


def _load_upright(
    opened: ImageFile.ImageFile,
    stripped: StrippedImage,
    transform: ImageTransform,
) -> Image.Image:
    """Decode the pixels of ``opened`` and rotate them upright."""
    if stripped.format == "JPEG":
        reduction = dct_reduction(opened.size, transform)
        reduced_size = (opened.width // reduction, opened.height // reduction)
        opened.draft(None, reduced_size)
    raw_mode = opened.tile[0].args if opened.tile else None  # which loading removes
    opened.load()
    image: Image.Image = opened
    if stripped.format in ("PNG", "BMP"):
        image = correct_transparency(opened, raw_mode, stripped)
    orientation = stripped.orientation
    if orientation is None:
        exif = opened.info.get("exif", b"")
        orientation = read_orientation([exif], opened.info.get("xmp", b""))
    return image if orientation == UPRIGHT else apply_orientation(image, orientation)


def to_pixels(
    image: npt.NDArray[np.uint8],
    transform: ImageTransform,
) -> npt.NDArray[np.uint8]:
    """Return grey or RGB pixels, ``(H, W)`` or ``(H, W, 3)``, as ``uint8 (C, H, W)``."""
    return _to_pixels(Image.fromarray(image), transform)


def _to_pixels(image: Image.Image, transform: ImageTransform) -> npt.NDArray[np.uint8]:
    mode = "L" if transform.size[0] == 1 else "RGB"
    if image.mode != mode or image.has_transparency_data:
        image = convert(image, mode)
    return resize_and_crop(image, transform)


def check_size(
    size: tuple[int, int],
    transform: ImageTransform,
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

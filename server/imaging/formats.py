"""Detect the format of an encoded file by its content, and remove what its pixels do not need.

Profiles, comments, thumbnails, EXIF and further images are removed from a JPEG, PNG or GIF before
Pillow reads it. No pixel depends on them, and they let a small body use much memory or time: text
and profiles that inflate, EXIF entries that all point to the same bytes, and millions of empty
parts, each a step of Python that blocks all threads (20 MB of them: 4 seconds). Only libwebp parses
a WebP, and a BMP has no such parts. An AVIF file may say one size and have data of another.
"""

from __future__ import annotations

import re

from PIL import features

from server.errors import BadImage, UnsupportedFormat
from server.imaging.avif import is_avif, open_avif
from server.imaging.bmp import is_bmp, open_bmp
from server.imaging.container import PartCollector, StrippedImage
from server.imaging.foreign import name_format
from server.imaging.jpeg import strip_jpeg
from server.imaging.png import SIGNATURE as _PNG_SIGNATURE
from server.imaging.png import strip_png

# Pillow has AVIF only where it was built with libavif.
_HAS_AVIF = bool(features.check("avif"))
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", *(["AVIF"] if _HAS_AVIF else []))
_SUPPORTED = f"allowed are JPEG, PNG, WebP, GIF{', BMP and AVIF' if _HAS_AVIF else ' and BMP'}"

_GIF_HEADER_BYTES = 13
_GIF_FLAGS = 10
_GIF_HAS_PALETTE = 0x80
_GIF_PALETTE_SIZE = 0x07
_GIF_EXTENSION = 0x21
# An extension, an image, or the end. Other bytes between blocks, often zeros, begin no block.
_GIF_BLOCK = re.compile(rb"[\x21\x2c\x3b]")
_GIF_CONTROL = 0xF9

# Offsets of the extended header of a WebP (RFC 9649, section 2.7).
_WEBP_CHUNK = slice(12, 16)
_WEBP_WIDTH = 24
_WEBP_HEIGHT = 27
_WEBP_SIDE_BYTES = 3


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
                return _strip_gif(body)
            case "WEBP":
                return _open_webp(body)
            case "BMP":
                return open_bmp(body)
            case "AVIF":
                return open_avif(body)
    except IndexError:
        raise BadImage("the image is corrupt or truncated") from None
    name = name_format(body)
    found = f"{name}, which is not supported" if name else "not an image of a supported format"
    raise UnsupportedFormat(f"the body is {found}; {_SUPPORTED}")


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


def _strip_gif(body: bytes) -> StrippedImage:
    """Keep the blocks (GIF89a specification) that the first image needs, and all that follows."""
    parts = PartCollector(body)
    start = _GIF_HEADER_BYTES + _gif_palette_bytes(body[_GIF_FLAGS])
    parts.keep(0, start)
    start = _next_gif_block(body, start)
    while body[start] == _GIF_EXTENSION:
        end = _gif_extension_end(body, start, parts)
        label = body[start + 1]
        first_block = body[start + 2]
        # After an empty one Pillow would read what follows as another.
        if label == _GIF_CONTROL and first_block:
            parts.keep(start, end)
        start = _next_gif_block(body, end)
    # An image, or the end, which Pillow refuses.
    parts.keep(start)
    return StrippedImage("GIF", parts.join())


def _next_gif_block(body: bytes, start: int) -> int:
    match = _GIF_BLOCK.search(body, start)
    if match is None:
        raise IndexError
    return match.start()


def _gif_palette_bytes(flags: int) -> int:
    if not flags & _GIF_HAS_PALETTE:
        return 0
    exponent = (flags & _GIF_PALETTE_SIZE) + 1
    return 3 << exponent


def _gif_extension_end(body: bytes, start: int, parts: PartCollector) -> int:
    """Return where the extension at ``start`` ends, and count its blocks."""
    position = start + 2
    while size := body[position]:
        parts.count()
        position += size + 1
    parts.count()
    return position + 1


def _open_webp(body: bytes) -> StrippedImage:
    """Read the canvas of an extended file: a decoder allocates two of its size when created."""
    canvases: tuple[tuple[int, int], ...] = ()
    if body[_WEBP_CHUNK] == b"VP8X":
        width = _webp_side(body, _WEBP_WIDTH)
        height = _webp_side(body, _WEBP_HEIGHT)
        canvases = ((width, height),)
    return StrippedImage("WEBP", body, orientation=None, canvases=canvases)


def _webp_side(body: bytes, start: int) -> int:
    end = start + _WEBP_SIDE_BYTES
    return int.from_bytes(body[start:end], "little") + 1

"""Detect the format of an encoded file by its content, and remove what its pixels do not need.

Profiles, comments, thumbnails, EXIF and further images are removed from a JPEG, PNG or GIF before
Pillow reads it. No pixel depends on them, and they let a small body use much memory or time: text
and profiles that inflate, EXIF entries that all point to the same bytes, and millions of empty
parts, each a step of Python that blocks all threads (20 MB of them: 4 seconds). Only libwebp parses
a WebP, and a BMP has no such parts.
"""

from __future__ import annotations

from server.errors import BadImage, UnsupportedFormat
from server.imaging.container import PartCollector, StrippedImage, read_number
from server.imaging.jpeg import strip_jpeg
from server.imaging.orientation import read_orientation

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_SUPPORTED = "allowed are JPEG, PNG, WebP, GIF and BMP"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# The end of the file, or the second frame of an animation.
_PNG_LAST = {b"IEND", b"fdAT"}
# Length and type before a chunk's data, and the checksum after it.
_CHUNK_HEAD_BYTES = 8
_CHUNK_CHECKSUM_BYTES = 4

_GIF_HEADER_BYTES = 13
_GIF_FLAGS = 10
_GIF_HAS_PALETTE = 0x80
_GIF_PALETTE_SIZE = 0x07
_GIF_EXTENSION = 0x21
_GIF_IMAGE = 0x2C
_GIF_CONTROL = 0xF9

# Offsets of the extended header of a WebP (RFC 9649, section 2.7).
_WEBP_CHUNK = slice(12, 16)
_WEBP_WIDTH = 24
_WEBP_HEIGHT = 27
_WEBP_SIDE_BYTES = 3

# Known sizes of a bitmap's header. "BM" alone also begins many a text.
_BMP_CORE_HEADER = 12
_BMP_HEADERS = (_BMP_CORE_HEADER, 40, 52, 56, 64, 108, 124)
_BMP_HEADER_SIZE = slice(14, 18)
_BMP_COMPRESSION = 30
_BMP_RUN_LENGTHS = (1, 2)


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
                return _strip_png(body)
            case "GIF":
                return _strip_gif(body)
            case "WEBP":
                return _open_webp(body)
            case "BMP":
                return _open_bmp(body)
    except IndexError:
        raise BadImage("the image is corrupt or truncated") from None
    raise UnsupportedFormat(f"the body is not an image of a supported format; {_SUPPORTED}")


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
    if body.startswith(b"BM") and _bmp_header_size(body) in _BMP_HEADERS:
        return "BMP"
    return None


def _strip_png(body: bytes) -> StrippedImage:
    """Keep the chunks (PNG specification, section 5.3) that the first frame needs."""
    parts = PartCollector(body)
    orientation = 1
    start = len(_PNG_SIGNATURE)
    parts.keep(0, start)
    while start < len(body):
        parts.count()
        data_start = start + _CHUNK_HEAD_BYTES
        data_end = data_start + read_number(body, start, 4)
        end = data_end + _CHUNK_CHECKSUM_BYTES
        chunk_type = body[start + 4 : data_start]
        if chunk_type in _PNG_KEPT:
            parts.keep(start, end)
        elif chunk_type == b"eXIf":
            orientation = read_orientation(body[data_start:data_end])
        if chunk_type in _PNG_LAST:
            break
        start = end
    return StrippedImage("PNG", parts.join(), orientation)


def _strip_gif(body: bytes) -> StrippedImage:
    """Keep the blocks (GIF89a specification) that the first image needs, and all that follows."""
    parts = PartCollector(body)
    start = _GIF_HEADER_BYTES + _gif_palette_bytes(body[_GIF_FLAGS])
    parts.keep(0, start)
    while body[start] == _GIF_EXTENSION:
        end = _gif_extension_end(body, start, parts)
        label = body[start + 1]
        if label == _GIF_CONTROL:
            parts.keep(start, end)
        start = end
    if body[start] != _GIF_IMAGE:
        raise BadImage("the image is corrupt or truncated")
    parts.keep(start)
    return StrippedImage("GIF", parts.join())


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
    canvas = None
    if body[_WEBP_CHUNK] == b"VP8X":
        width = _webp_side(body, _WEBP_WIDTH)
        height = _webp_side(body, _WEBP_HEIGHT)
        canvas = (width, height)
    return StrippedImage("WEBP", body, canvas=canvas)


def _webp_side(body: bytes, start: int) -> int:
    end = start + _WEBP_SIDE_BYTES
    return int.from_bytes(body[start:end], "little") + 1


def _open_bmp(body: bytes) -> StrippedImage:
    """Refuse run-length compression: Pillow expands it in Python, which blocks all threads."""
    if _bmp_header_size(body) == _BMP_CORE_HEADER:  # it has no compression
        return StrippedImage("BMP", body)
    compression = read_number(body, _BMP_COMPRESSION, 4, "little")
    if compression in _BMP_RUN_LENGTHS:
        raise UnsupportedFormat(
            f"the bitmap is compressed by run lengths; save it without; {_SUPPORTED}"
        )
    return StrippedImage("BMP", body)


def _bmp_header_size(body: bytes) -> int:
    return int.from_bytes(body[_BMP_HEADER_SIZE], "little")

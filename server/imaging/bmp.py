"""Check the header of a bitmap, and complete its palette (Windows' ``BITMAPINFOHEADER`` ff.)."""

from __future__ import annotations

import struct

from server.errors import UnsupportedFormat
from server.imaging.container import StrippedImage, read_number

# Known sizes of a bitmap's header. "BM" alone also begins many a text.
_CORE_HEADER = 12
_HEADERS = (_CORE_HEADER, 40, 52, 56, 64, 108, 124)

_FILE_HEADER_BYTES = 14
_PIXELS_OFFSET = 10
_HEADER_SIZE = slice(14, 18)
_BITS = 28
_COMPRESSION = 30
_COLOURS = 46

_RUN_LENGTHS = (1, 2)
_UNCOMPRESSED = (0, 3)  # with bit masks or without
_PALETTE_BITS = (1, 4, 8)
_ENTRY_BYTES = 4
# Pillow reads a palette of greys 0, 1, 2... as 8 bits a pixel, which these have not. One entry
# more, of black, is no such palette.
_BITS_WITH_EXTRA_ENTRY = 4


def is_bmp(body: bytes) -> bool:
    """Return whether ``body`` has the signature of a bitmap and a header of a known size."""
    return body.startswith(b"BM") and _header_size(body) in _HEADERS


def open_bmp(body: bytes) -> StrippedImage:
    """Return the bitmap with all colours of its palette.

    Raises:
        UnsupportedFormat: it is compressed. Pillow expands run lengths in Python, which blocks all
            threads, and nothing else.
        IndexError: it is truncated.
    """
    if _header_size(body) == _CORE_HEADER:  # its palette is complete, and it has no compression
        return StrippedImage("BMP", body)
    compression = read_number(body, _COMPRESSION, 4, "little")
    if compression in _RUN_LENGTHS:
        raise UnsupportedFormat(
            "the bitmap is compressed by run lengths; save it without compression"
        )
    if compression not in _UNCOMPRESSED:
        raise UnsupportedFormat("the bitmap's compression is not supported; save it without")
    return StrippedImage("BMP", _complete_palette(body))


def _complete_palette(body: bytes) -> bytes:
    """Fill a palette that has fewer colours than the bits of a pixel allow, with black.

    Pillow takes 8 or 4 bits a pixel for one bit if the palette consists of black and white.
    """
    bits = read_number(body, _BITS, 2, "little")
    colours = read_number(body, _COLOURS, 4, "little") or 1 << bits
    all_colours = 1 << bits
    if bits == _BITS_WITH_EXTRA_ENTRY:
        all_colours += 1
    if bits not in _PALETTE_BITS or colours >= all_colours:
        return body
    palette_start = _FILE_HEADER_BYTES + _header_size(body)
    palette_end = palette_start + _ENTRY_BYTES * colours
    pixels_start = read_number(body, _PIXELS_OFFSET, 4, "little")
    if pixels_start in (0, palette_start):  # as Pillow reads it
        pixels_start = palette_end
    palette = body[palette_start:palette_end].ljust(_ENTRY_BYTES * all_colours, b"\0")
    header = bytearray(body[:palette_start])
    struct.pack_into("<I", header, _PIXELS_OFFSET, palette_start + len(palette))
    struct.pack_into("<I", header, _COLOURS, all_colours)
    return bytes(header) + palette + body[pixels_start:]


def _header_size(body: bytes) -> int:
    return int.from_bytes(body[_HEADER_SIZE], "little")

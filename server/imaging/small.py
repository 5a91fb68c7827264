"""Whether a picture is decoded in less time than its way to a thread and back takes.

Such a picture may be decoded in the event loop, which it must not block for more than about half a
millisecond, whatever its bytes are. So the number of its bytes is limited as well as that of its
pixels, and it has no second header and no second scan that could say otherwise. Other formats may
have more pictures than their header says. Where resizing is not compiled, Pillow may take a
millisecond for the largest input (`python -m benchmarks.decode` prints both).
"""

from __future__ import annotations

from server.imaging.png import SIGNATURE as _PNG_SIGNATURE

MAX_SMALL_BYTES = 4096
# Height times width of what a model takes: resizing to more takes too long.
MAX_INPUT_PIXELS = 256 * 256

_MAX_PIXELS = 64 * 64
_MAX_DATA_CHUNKS = 16  # of a PNG; Pillow reads each in Python
_MAX_SEGMENTS = 16  # of a JPEG, up to its frame header
_MAX_MARKERS = 64  # 0xFF in a JPEG, in its pixels too
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_BASELINE = 0xC0
# Segments that may come before a baseline frame header: tables, application data, comments.
_HEADER_SEGMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})


def is_small(body: bytes) -> bool:
    """Return whether ``body`` is a small PNG or baseline JPEG, by its header."""
    if len(body) > MAX_SMALL_BYTES:
        return False
    if body.startswith(_PNG_SIGNATURE):
        pixels = _png_pixels(body)
    elif body.startswith(_JPEG_SIGNATURE):
        pixels = _jpeg_pixels(body)
    else:
        return False
    return pixels is not None and pixels <= _MAX_PIXELS


def _png_pixels(body: bytes) -> int | None:
    """Return the number of pixels of a PNG (W3C PNG, section 11.2.1); None if it is not certain."""
    if body[12:16] != b"IHDR" or body.count(b"IHDR") != 1:
        return None
    if body.count(b"IDAT") > _MAX_DATA_CHUNKS:
        return None
    return int.from_bytes(body[16:20]) * int.from_bytes(body[20:24])


def _jpeg_pixels(body: bytes) -> int | None:
    """Return the number of pixels of a baseline JPEG of one scan (ITU T.81, B.2.2), else None."""
    if body.count(b"\xff\xda") != 1 or body.count(b"\xff") > _MAX_MARKERS:
        return None
    position = 2
    for _ in range(_MAX_SEGMENTS):
        header = body[position : position + 9]
        if len(header) < 9 or header[0] != 0xFF:
            return None
        if header[1] == _BASELINE:
            return int.from_bytes(header[5:7]) * int.from_bytes(header[7:9])
        if header[1] not in _HEADER_SEGMENTS:
            return None
        position += 2 + int.from_bytes(header[2:4])
    return None

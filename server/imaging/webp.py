"""Read the canvas that a WebP file declares (RFC 9649). Only libwebp parses the rest of it."""

from __future__ import annotations

from server.imaging.container import StrippedImage

# Offsets of the extended header of a WebP (RFC 9649, section 2.7).
_CHUNK = slice(12, 16)
_WIDTH = 24
_HEIGHT = 27
_SIDE_BYTES = 3


def open_webp(body: bytes) -> StrippedImage:
    """Read the canvas of an extended file: a decoder allocates two of its size when created."""
    canvases: tuple[tuple[int, int], ...] = ()
    if body[_CHUNK] == b"VP8X":
        width = _side(body, _WIDTH)
        height = _side(body, _HEIGHT)
        canvases = ((width, height),)
    return StrippedImage("WEBP", body, orientation=None, canvases=canvases)


def _side(body: bytes, start: int) -> int:
    end = start + _SIDE_BYTES
    return int.from_bytes(body[start:end], "little") + 1

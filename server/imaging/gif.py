"""Remove the metadata of a GIF file (GIF89a specification)."""

from __future__ import annotations

import re

from server.imaging.container import PartCollector, StrippedImage

_HEADER_BYTES = 13
_FLAGS = 10
_HAS_PALETTE = 0x80
_PALETTE_SIZE = 0x07
_EXTENSION = 0x21
# An extension, an image, or the end. Other bytes between blocks, often zeros, begin no block.
_BLOCK = re.compile(rb"[\x21\x2c\x3b]")
_CONTROL = 0xF9


def strip_gif(body: bytes) -> StrippedImage:
    """Keep the blocks (GIF89a specification) that the first image needs, and all that follows."""
    parts = PartCollector(body)
    start = _HEADER_BYTES + _palette_bytes(body[_FLAGS])
    parts.keep(0, start)
    start = _next_block(body, start)
    while body[start] == _EXTENSION:
        end = _extension_end(body, start, parts)
        label = body[start + 1]
        first_block = body[start + 2]
        # After an empty one Pillow would read what follows as another.
        if label == _CONTROL and first_block:
            parts.keep(start, end)
        start = _next_block(body, end)
    # An image, or the end, which Pillow refuses.
    parts.keep(start)
    return StrippedImage("GIF", parts.join())


def _next_block(body: bytes, start: int) -> int:
    match = _BLOCK.search(body, start)
    if match is None:
        raise IndexError
    return match.start()


def _palette_bytes(flags: int) -> int:
    if not flags & _HAS_PALETTE:
        return 0
    exponent = (flags & _PALETTE_SIZE) + 1
    return 3 << exponent


def _extension_end(body: bytes, start: int, parts: PartCollector) -> int:
    """Return where the extension at ``start`` ends, and count its blocks."""
    position = start + 2
    while size := body[position]:
        parts.count()
        position += size + 1
    parts.count()
    return position + 1

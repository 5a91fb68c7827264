"""Read the first picture of a GIF, without a library (GIF89a specification)."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

_EXTENSION = 0x21
_IMAGE = 0x2C
_CONTROL = 0xF9
# First row and distance of each pass (appendix E).
_PASSES = ((0, 8), (4, 8), (2, 4), (1, 2))

Bytes = npt.NDArray[np.uint8]


def rgba(body: bytes) -> Bytes:
    """Return ``uint8 (H, W, 4)``.

    Around a picture that is smaller than the screen is its transparent colour, or without one its
    first colour.
    """
    width, height, flags = struct.unpack_from("<HHB", body, 6)
    palette, position = _palette(body, 13, flags)
    transparent = None
    while body[position] != _IMAGE:
        if body[position] != _EXTENSION:  # begins no block
            position += 1
            continue
        label = body[position + 1]
        data, position = _sub_blocks(body, position + 2)
        if label == _CONTROL and data[0] & 1:
            transparent = data[3]
    left, top, across, down, flags = struct.unpack_from("<HHHHB", body, position + 1)
    own_palette, position = _palette(body, position + 10, flags)
    data, _ = _sub_blocks(body, position + 1)
    indices = np.array(_lzw(data, body[position])[: across * down]).reshape(down, across)
    if flags & 0x40:
        order = [row for first, step in _PASSES for row in range(first, down, step)]
        indices[order] = indices.copy()
    canvas = np.full((max(height, top + down), max(width, left + across)), transparent or 0)
    canvas[top : top + down, left : left + across] = indices
    entries = np.zeros((256, 4), np.uint8)
    colours = own_palette if len(own_palette) else palette
    entries[: len(colours), :3] = colours
    entries[:, 3] = 255
    if transparent is not None:
        entries[transparent, 3] = 0
    return entries[canvas]


def _palette(body: bytes, start: int, flags: int) -> tuple[Bytes, int]:
    """Return the colours at ``start``, none if ``flags`` say so, and where they end."""
    size = 3 << (flags & 7) + 1 if flags & 0x80 else 0
    end = start + size
    return np.frombuffer(body[start:end], np.uint8).reshape(-1, 3), end


def _sub_blocks(body: bytes, position: int) -> tuple[bytes, int]:
    parts = []
    while size := body[position]:
        parts.append(body[position + 1 : position + 1 + size])
        position += size + 1
    return b"".join(parts), position + 1


def _lzw(data: bytes, root_bits: int) -> list[int]:
    """Expand codes of variable length (appendix F)."""
    clear = 1 << root_bits
    roots = [[value] for value in range(clear)] + [[], []]
    table = list(roots)
    indices: list[int] = []
    previous: list[int] = []
    bits = root_bits + 1
    stream = int.from_bytes(data, "little")
    left = 8 * len(data)
    while left >= bits:
        code = stream & (1 << bits) - 1
        stream >>= bits
        left -= bits
        if code == clear + 1:
            break
        if code == clear:
            table = list(roots)
            bits = root_bits + 1
            previous = []
            continue
        if previous and len(table) < 4096:
            beginning = table[code] if code < len(table) else previous
            table.append([*previous, beginning[0]])
        previous = table[code]
        indices += previous
        if len(table) == 1 << bits and bits < 12:
            bits += 1
    return indices

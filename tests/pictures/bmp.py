"""Write and read bitmaps of every kind but compressed ones, without a library.

Source: Microsoft's documentation of ``BITMAPINFOHEADER`` to ``BITMAPV5HEADER``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CORE = 12
INFO = 40
HEADERS = (CORE, INFO, 52, 56, 108, 124)
_BIT_FIELDS = 3

Bytes = npt.NDArray[np.uint8]
# Which bits of a pixel are red, green, blue and alpha.
Masks = tuple[int, int, int, int]
RGB_555 = (0x7C00, 0x3E0, 0x1F, 0)
RGB_565 = (0xF800, 0x7E0, 0x1F, 0)
BGR = (0xFF0000, 0xFF00, 0xFF, 0)
BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
RGBA = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
ABGR = (0xFF000000, 0xFF0000, 0xFF00, 0xFF)


@dataclass(frozen=True)
class Bmp:
    """What a file says.

    Attributes:
        pixels: numbers ``uint32 (H, W)``, from the top down.
        palette: ``uint8 (N, 3)``, red first.
        masks: None without bit fields.
    """

    pixels: npt.NDArray[np.uint32]
    bits: int
    header: int = INFO
    palette: Bytes | None = None
    masks: Masks | None = None
    top_down: bool = False


def write_bmp(image: Bmp) -> bytes:
    """Return a file of ``image``."""
    height, width = image.pixels.shape
    data = _rows(image)
    palette = b""
    if image.palette is not None:
        entries = image.palette[:, ::-1]
        if image.header != CORE:
            entries = np.pad(entries, ((0, 0), (0, 1)))
        palette = entries.tobytes()
    if image.header == CORE:
        info = struct.pack("<IHHHH", CORE, width, height, 1, image.bits)
    else:
        colours = 0 if image.palette is None else len(image.palette)
        info = struct.pack(
            "<IiiHHIIiiII",
            image.header,
            width,
            -height if image.top_down else height,
            1,
            image.bits,
            _BIT_FIELDS if image.masks else 0,
            len(data),
            0,
            0,
            colours,
            0,
        )
        info = (info + struct.pack("<4I", *(image.masks or (0,) * 4))).ljust(image.header, b"\0")
        # A header of 40 bytes is followed by three masks.
        info = info[: max(image.header, 52 if image.masks else 0)]
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + palette + data


def _rows(image: Bmp) -> bytes:
    """The pixels, each row filled to 4 bytes."""
    order = image.pixels if image.top_down else image.pixels[::-1]
    rows = []
    for row in order:
        if image.bits < 8:
            bits = row[:, None] >> np.arange(image.bits)[::-1] & 1
            data = np.packbits(bits.astype(np.uint8)).tobytes()
        else:
            data = b"".join(int(pixel).to_bytes(image.bits // 8, "little") for pixel in row)
        rows.append(data + bytes(-len(data) % 4))
    return b"".join(rows)


def read_bmp(body: bytes) -> Bmp:
    """Return what a file says."""
    offset, header = struct.unpack_from("<II", body, 10)
    if header == CORE:
        width, height, _, bits = struct.unpack_from("<HHHH", body, 18)
        compression = colours = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", body, 18)
        (colours,) = struct.unpack_from("<I", body, 46)
    masks = None
    if compression == _BIT_FIELDS:
        red, green, blue, alpha = struct.unpack_from("<4I", body, 54)
        masks = (red, green, blue, alpha if header >= 56 else 0)
    palette = None
    if bits <= 8:
        size = 3 if header == CORE else 4
        start = 14 + header
        stored = body[start : start + size * (colours or 1 << bits)]
        palette = np.frombuffer(stored, np.uint8).reshape(-1, size)[:, 2::-1]
    top_down = height < 0
    pixels = _read_rows(body[offset:], width, abs(height), bits)
    return Bmp(pixels if top_down else pixels[::-1], bits, header, palette, masks, top_down)


def _read_rows(data: bytes, width: int, height: int, bits: int) -> npt.NDArray[np.uint32]:
    row_bytes = (width * bits + 31) // 32 * 4
    rows = np.frombuffer(data[: row_bytes * height], np.uint8).reshape(height, row_bytes)
    if bits < 8:
        unpacked = np.unpackbits(rows, axis=1)[:, : width * bits].reshape(height, width, bits)
        return (unpacked @ (1 << np.arange(bits)[::-1])).astype(np.uint32)
    parts = rows[:, : width * bits // 8].reshape(height, width, bits // 8)
    return (parts @ (1 << 8 * np.arange(bits // 8, dtype=np.int64))).astype(np.uint32)


def rgba(image: Bmp) -> Bytes:
    """Return ``uint8 (H, W, 4)``. Alpha that is zero everywhere was not set by the writer.

    The alpha of 16 bits a pixel, and of headers without a mask for it, is not used.
    """
    opaque = np.full(image.pixels.shape, 255, np.uint8)
    if image.palette is not None:
        entries = np.zeros((256, 3), np.uint8)
        entries[: len(image.palette)] = image.palette
        return np.dstack([entries[image.pixels], opaque])
    red, green, blue, alpha = image.masks or (RGB_555 if image.bits == 16 else BGR)
    channels = [_channel(image.pixels, mask) for mask in (red, green, blue)]
    if alpha and image.bits == 32:
        stored = _channel(image.pixels, alpha)
        opaque = stored if stored.any() else opaque
    return np.dstack([*channels, opaque])


def _channel(pixels: npt.NDArray[np.uint32], mask: int) -> Bytes:
    shift = (mask & -mask).bit_length() - 1
    largest = mask >> shift
    return ((pixels >> shift & largest) * 255 // largest).astype(np.uint8)

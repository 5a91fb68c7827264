"""Building blocks of image files that no encoder writes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
# First row and column, and their distances, of each pass (PNG specification, section 8.2).
ONE_PASS = ((0, 0, 1, 1),)
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """A smooth image, which lossy formats change little."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(
        np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    ).convert(mode)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(chunk_type: bytes, data: bytes = b"") -> bytes:
    """One chunk of a PNG."""
    content = chunk_type + data
    return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))


def header(width: int, height: int, bits: int = 8, color: int = 2, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced))


def png(*chunks: bytes) -> bytes:
    return PNG + b"".join(chunks) + chunk(b"IEND")


def png_with(*extra: bytes, image: Image.Image | None = None) -> bytes:
    """A PNG with ``extra`` chunks before its pixels."""
    body = encode(image or picture(), "PNG")
    return body[:33] + b"".join(extra) + body[33:]


def png_pixels(pixels: np.ndarray, color: int, interlaced: bool = False) -> bytes:
    """A PNG of ``pixels (H, W, C)``, of 8 or 16 bits and colour type ``color``; Adam7 or not."""
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = [
        row
        for top, left, down, across in (ADAM7 if interlaced else ONE_PASS)
        for row in big_endian[top::down, left::across]
        if row.size
    ]
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    height, width = pixels.shape[:2]
    return png(header(width, height, 8 * pixels.itemsize, color, interlaced), chunk(b"IDAT", data))


def deflated_zeros(megabytes: int) -> bytes:
    """Zeros compressed piece by piece, because a test that measures memory builds these files."""
    compressor = zlib.compressobj(9)
    pieces = [compressor.compress(bytes(1_000_000)) for _ in range(megabytes)]
    return b"".join(pieces) + compressor.flush()


def segment(marker: int, data: bytes = b"") -> bytes:
    """One segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(*extra: bytes, **options) -> bytes:
    """A JPEG with ``extra`` segments at its start."""
    body = encode(picture(), "JPEG", **options)
    return body[:2] + b"".join(extra) + body[2:]


# In EXIF: a tag, and the type of its value.
ORIENTATION = 0x0112
SHORT = 3
# The segment of a JPEG that holds EXIF or XMP.
APP1 = 0xE1


def exif(*entries: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """A little-endian TIFF directory of ``(tag, type, count, value or offset)``, then ``data``."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + b"\0\0\0\0" + data


def gif_with(*extra: bytes) -> bytes:
    """A GIF with ``extra`` blocks before its picture."""
    body = encode(picture(), "GIF")
    start = 13 + (3 << (body[10] & 7) + 1 if body[10] & 0x80 else 0)
    return body[:start] + b"".join(extra) + body[start:]


def sub_blocks(data: bytes, size: int = 255) -> bytes:
    parts: Iterable[bytes] = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP whose canvas differs in size from its picture."""
    still = encode(picture(), "WEBP")[12:]
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    chunks = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + sides + still
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def bmp(
    width: int, height: int, bits: int, data: bytes, compression: int = 0, palette: bytes = b""
) -> bytes:
    offset = 54 + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII",
        40,
        width,
        height,
        1,
        bits,
        compression,
        len(data),
        0,
        0,
        len(palette) // 4,
        0,
    )
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + palette + data


def box(box_type: bytes, *content: bytes) -> bytes:
    """One box of an ISO media file."""
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + box_type + data


def avif_of(data: bytes, count: int, item_type: bytes = b"av01", pieces: int = 1) -> bytes:
    """An AVIF of ``count`` items that all have the same data, in ``pieces`` that overlap."""
    version = b"\0\0\0\0"
    entries = [
        box(b"infe", b"\2\0\0\0" + struct.pack(">HH", number, 0) + item_type + b"\0")
        for number in range(count)
    ]
    types = box(b"iinf", version + struct.pack(">H", count), *entries)
    brand = box(b"ftyp", b"avif\0\0\0\0avif")
    locations_bytes = 16 + count * (6 + 8 * pieces)
    start = len(brand) + 12 + len(types) + locations_bytes + 8
    piece = struct.pack(">II", start, len(data)) * pieces
    locations = box(
        b"iloc",
        version + b"\x44\0" + struct.pack(">H", count),
        *[struct.pack(">HHH", number, 0, pieces) + piece for number in range(count)],
    )
    meta = box(b"meta", version, types, locations)
    return brand + meta + box(b"mdat", data)


def avif_with_exif(directory: bytes, **options) -> bytes:
    """An AVIF with exactly this EXIF. Pillow writes an orientation as the file's own properties."""
    placeholder = exif((1, SHORT, 1, 1), data=bytes(len(directory) - len(exif((1, SHORT, 1, 1)))))
    body = encode(picture(), "AVIF", exif=placeholder, **options)
    assert placeholder in body
    return body.replace(placeholder, directory)

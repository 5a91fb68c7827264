"""Peak memory of decoding a 50-megapixel image, by format: `python -m benchmarks.decode_memory`.

Each is decoded in a process of its own, as the server does it, for a model of 224 pixels. What
counts is the highest resident memory meanwhile, less that before, when the encoded bytes are there
already.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.memory import clear_peak, megabytes
from server.media.transforms import ImageTransform
from server.settings import Settings

SIDE = 7071
TRANSFORM = ImageTransform((3, 224, 224), "bicubic", 0.9, "center")


def picture() -> Image.Image:
    """A picture of ``SIDE`` x ``SIDE``: shapes large and small, repeated."""
    random = np.random.default_rng(0)
    tile = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (512, 512), Image.Resampling.BICUBIC
    )
    repeats = -(-SIDE // 512)
    return Image.fromarray(np.tile(np.asarray(tile), (repeats, repeats, 1))[:SIDE, :SIDE])


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    """``image`` as a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def sixteen_bits(image: Image.Image) -> Image.Image:
    """``image`` in grey of 16 bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def deep_with_transparent_colour(image: Image.Image) -> bytes:
    """A PNG of 16 bits a channel with one transparent colour, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    compressor = zlib.compressobj(1)
    rows = [compressor.compress(b"\0" + row.astype(">u2").tobytes()) for row in np.asarray(image)]
    data = b"".join(rows) + compressor.flush()
    header = struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"tRNS", bytes(6)) + chunk(b"IDAT", data)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def bitmap_with_alpha(image: Image.Image) -> bytes:
    """A bitmap whose header names a mask for alpha, which is zero everywhere."""
    pixels = np.asarray(image)[::-1, :, ::-1]
    data = np.pad(pixels, ((0, 0), (0, 0), (0, 1))).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, *image.size, 1, 32, 3, len(data), 0, 0, 0, 0)
    header = (info + masks).ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 122 + len(data), 0, 0, 122) + header + data


CASES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda image: encode(image, "JPEG"),
    "JPEG, progressive": lambda image: encode(image, "JPEG", progressive=True),
    "JPEG, progressive, CMYK": lambda image: encode(
        image.convert("CMYK"), "JPEG", progressive=True
    ),
    "JPEG, progressive, turned by EXIF": lambda image: encode(
        image, "JPEG", progressive=True, exif=turned()
    ),
    "PNG, RGB": lambda image: encode(image, "PNG", compress_level=1),
    "PNG, RGB, turned by EXIF": lambda image: encode(image, "PNG", compress_level=1, exif=turned()),
    "PNG, RGB with transparency": lambda image: encode(
        image.convert("RGBA"), "PNG", compress_level=1
    ),
    "PNG, palette": lambda image: encode(image.quantize(), "PNG", compress_level=1),
    "PNG, grey, 1 bit": lambda image: encode(image.convert("1"), "PNG", compress_level=1),
    "PNG, grey, 16 bits": lambda image: encode(sixteen_bits(image), "PNG", compress_level=1),
    "PNG, RGB, 16 bits, with a transparent colour": deep_with_transparent_colour,
    "WebP": lambda image: encode(image, "WEBP", method=0),
    "WebP with transparency": lambda image: encode(image.convert("RGBA"), "WEBP", method=0),
    "GIF": lambda image: encode(image.quantize(), "GIF"),
    "BMP": lambda image: encode(image, "BMP"),
    "BMP with alpha": bitmap_with_alpha,
    "AVIF": lambda image: encode(image, "AVIF", speed=10),
    "AVIF with transparency": lambda image: encode(image.convert("RGBA"), "AVIF", speed=10),
}


def turned() -> Image.Exif:
    """EXIF data that ask for a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def measure(path: Path) -> float:
    """Megabytes (1e6 bytes) that decoding ``path`` takes at most; run in a process of its own."""
    from server.imaging.decode import decode

    body = path.read_bytes()
    limits = Settings.model_fields
    before = megabytes("VmRSS")
    clear_peak()
    decode(body, TRANSFORM, limits["max_pixels"].default, limits["max_side"].default)
    return megabytes("VmHWM") - before


def main() -> int:
    """Print the table."""
    image = picture()
    table = Table(
        "format", "file, MB", "peak, MB", "bytes per pixel", caption=f"{SIDE} x {SIDE} pixels"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        for name, make in CASES.items():
            path.write_bytes(make(image))
            command = [sys.executable, "-m", "benchmarks.decode_memory", str(path)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak = float(printed)
            size = path.stat().st_size / 1e6
            table.add_row(name, f"{size:.1f}", f"{peak:.0f}", f"{peak * 1e6 / SIDE**2:.1f}")
    Console(width=None if Console().is_terminal else 100).print(table)
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(Path(sys.argv[1])))
    else:
        sys.exit(main())

"""Pictures of every format, mode, depth, orientation, transparency and order of rows.

What a picture shows comes from the readers beside this file, or from the samples that were written;
of lossy formats, for which there is one decoder only, from Pillow on a file without metadata.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.imaging.decode import FORMATS
from tests.hostile.build import encode
from tests.pictures import bmp, gif, png
from tests.pictures.orientations import jpeg_segments, png_chunks, tags, upright, xmp

Pixels = npt.NDArray[np.uint8]
Kind = Callable[["Choices"], "Picture"]

# Where Pillow differs, and this repository on purpose.
KEY = "compares a transparent colour with samples that it has scaled, or with half of them"
GREY_16 = "clips 16-bit grey at 255"
ALPHA_ZERO = "takes a bitmap whose alpha is zero everywhere for transparent"
SECOND_EXIF = "reads the first directory of EXIF alone, and fails on a broken one"
SHORT_PALETTE = "takes 4 or 8 bits a pixel for one bit, or a short palette for a long one"

# Of bitmaps, by the bits of a pixel.
_MASKS = {16: (bmp.RGB_555, bmp.RGB_565), 32: (bmp.BGR, bmp.BGRA, bmp.RGBA, bmp.ABGR)}


@dataclass(frozen=True)
class Picture:
    """A file, and what it shows.

    Attributes:
        shows: RGB over white ``uint8 (H, W, 3)``, upright.
        pillow_differs: how Pillow alone shows something else, or nothing if it does not.
    """

    name: str
    body: bytes
    shows: Pixels
    pillow_differs: str = ""


class Choices:
    """Random choices from a seed."""

    def __init__(self, seed: int) -> None:
        self.plain = random.Random(seed)
        self.numbers = np.random.default_rng(seed)

    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.numbers.integers(1, 41, 2)
        return int(height), int(width)

    def samples(self, channels: int, largest: int) -> npt.NDArray[np.uint16]:
        """``(H, W, C)`` in patches, so that single values occur often."""
        height, width = self.size()
        small = self.numbers.integers(0, largest + 1, (5, 5, channels))
        rows = np.arange(height) * 5 // height
        columns = np.arange(width) * 5 // width
        return small[rows][:, columns].astype(np.uint16)

    def image(self, channels: int) -> Pixels:
        """``uint8 (H, W, C)``."""
        return self.samples(channels, 255).astype(np.uint8)

    def orientation(self) -> int:
        return self.plain.randint(1, 8)


def pictures(count: int, seed: int) -> Iterator[Picture]:
    """Yield ``count`` pictures, one of each kind in turn."""
    kinds = list(all_kinds())
    for index in range(count):
        kind = kinds[index % len(kinds)]
        yield kind(Choices(seed * 1_000_000 + index))


def all_kinds() -> Iterator[Kind]:
    for color, depths in png.DEPTHS.items():
        for depth in depths:
            for interlaced in (False, True):
                yield partial(png_picture, color, depth, interlaced)
    for bits in (1, 4, 8, 16, 24, 32):
        for header in bmp.HEADERS:
            yield partial(bmp_picture, bits, header)
    for transparent in (False, True):
        for interlaced in (False, True):
            yield partial(gif_picture, transparent, interlaced)
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            yield partial(jpeg_picture, mode, progressive)
    for mode in ("RGB", "RGBA"):
        for lossless in (False, True):
            yield partial(webp_picture, mode, lossless)
    if "AVIF" in FORMATS:
        for mode in ("L", "RGB", "RGBA"):
            yield partial(avif_picture, mode)


def over_white(rgba: Pixels) -> Pixels:
    """Composite ``uint8 (H, W, 4)``, rounded."""
    alpha = rgba[..., 3:].astype(int)
    mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def png_picture(color: int, depth: int, interlaced: bool, choices: Choices) -> Picture:
    largest = (1 << depth) - 1
    channels = png.CHANNELS[color]
    samples = choices.samples(channels, largest)
    palette = None
    transparency = b""
    is_transparent = choices.plain.random() < 0.6
    if color == png.PALETTE:
        palette = choices.numbers.integers(0, 256, (largest + 1, 3), np.uint8)
        if is_transparent:
            entries = choices.plain.randint(1, largest + 1)
            transparency = bytes(choices.numbers.choice([0, 10, 128, 255], entries).tolist())
    elif is_transparent and color in (png.GREY, png.RGB):
        key = samples[0, 0].copy()
        if depth == 16:
            # A colour that differs in the lower bytes only must not be transparent.
            samples[-1, -1] = key ^ 1
        transparency = key.astype(">u2").tobytes()
    image = png.Png(samples, depth, color, palette, transparency, interlaced)
    orientation = choices.orientation()
    place, extra = png_chunks(orientation, choices.plain)
    filters = choices.numbers.integers(0, 5, 4).tolist()
    body = png.write_png(image, filters, extra)
    read = png.read_png(body)
    assert (read.samples == samples).all()
    differs = ""
    if color == png.GREY and depth == 16:
        differs = GREY_16
    elif transparency and (color == png.PALETTE or depth in (2, 4, 16)):
        differs = KEY
    return Picture(
        f"PNG type {color}, {depth} bits, {interlaced=}, {transparency.hex()=}, {place}",
        body,
        upright(over_white(png.rgba(read)), orientation),
        differs,
    )


def bmp_picture(bits: int, header: int, choices: Choices) -> Picture:
    palette = None
    masks = None
    pixels = choices.samples(1, (1 << min(bits, 16)) - 1)[..., 0].astype(np.int64)
    if bits <= 8:
        entries = 1 << bits
        if header != bmp.CORE and choices.plain.random() < 0.7:
            entries = min(choices.plain.choice([1, 2, 2, choices.plain.randint(1, 256)]), entries)
        palette = choices.numbers.integers(0, 256, (entries, 3), np.uint8)
        if choices.plain.random() < 0.5:
            palette[: min(entries, 2)] = [[0] * 3, [255] * 3][: min(entries, 2)]
        pixels %= entries
    elif bits >= 24:
        pixels = pixels * 65_521 % (1 << bits)
    if bits in _MASKS and header != bmp.CORE and choices.plain.random() < 0.7:
        usable = [mask for mask in _MASKS[bits] if mask[3] == 0 or header >= 56]
        masks = choices.plain.choice(usable)
        if masks[3] and choices.plain.random() < 0.5:
            pixels &= ~masks[3] & 0xFFFFFFFF
    # Pillow and others know no top-down bitmap with the oldest header.
    top_down = header != bmp.CORE and choices.plain.random() < 0.5
    image = bmp.Bmp(pixels.astype(np.uint32), bits, header, palette, masks, top_down)
    body = bmp.write_bmp(image)
    read = bmp.read_bmp(body)
    assert (read.pixels == pixels).all()
    differs = SHORT_PALETTE if palette is not None and len(palette) < 1 << bits else ""
    if masks and masks[3] and not (pixels & masks[3]).any():
        differs = ALPHA_ZERO
    return Picture(
        f"BMP of {bits} bits, header {header}, {masks=}, {top_down=}",
        body,
        over_white(bmp.rgba(read)),
        differs,
    )


def gif_picture(transparent: bool, interlaced: bool, choices: Choices) -> Picture:
    image = Image.fromarray(choices.image(3)).quantize(choices.plain.randint(2, 256))
    options = {"transparency": image.getpixel((0, 0))} if transparent else {}
    body = encode(image, "GIF", interlace=int(interlaced), **options)
    start = 13 + (3 << (body[10] & 7) + 1)  # after header and palette
    junk = bytes(choices.plain.choices([0, 0, 9], k=choices.plain.randint(0, 3)))
    body = body[:start] + junk + body[start:]
    shows = over_white(gif.rgba(body))
    return Picture(f"GIF {transparent=}, {interlaced=}, {junk=}", body, shows)


def jpeg_picture(mode: str, progressive: bool, choices: Choices) -> Picture:
    image = Image.fromarray(choices.image(3)).convert(mode)
    bare = encode(image, "JPEG", progressive=progressive, quality=90)
    orientation = choices.orientation()
    place, segments, pillow_agrees = jpeg_segments(orientation, choices.plain)
    restart = choices.plain.choice([b"", b"", b"\xff\xd0", b"\xff\xd7\xff\xd1"])
    return Picture(
        f"JPEG of {mode}, {progressive=}, {place}, {restart=}",
        bare[:2] + restart + segments + bare[2:],
        upright(_by_pillow(bare), orientation),
        "" if pillow_agrees else SECOND_EXIF,
    )


def webp_picture(mode: str, lossless: bool, choices: Choices) -> Picture:
    pixels = choices.image(len(mode))
    image = Image.fromarray(pixels)
    orientation = choices.orientation()
    options: dict[str, Any] = choices.plain.choice(
        [{"exif": tags(orientation)}, {"xmp": xmp(orientation, choices.plain)}]
    )
    encoding: dict[str, Any] = {"lossless": lossless, "exact": True, "method": 0}
    shows = _by_pillow(encode(image, "WEBP", **encoding))
    if lossless:
        shows = over_white(pixels) if mode == "RGBA" else pixels
    return Picture(
        f"WebP of {mode}, {lossless=}, {list(options)}",
        encode(image, "WEBP", **encoding, **options),
        upright(shows, orientation),
    )


def avif_picture(mode: str, choices: Choices) -> Picture:
    pixels = choices.image(len(mode))
    image = Image.fromarray(pixels.squeeze(-1) if mode == "L" else pixels)
    orientation = choices.orientation()
    return Picture(
        f"AVIF of {mode}",
        encode(image, "AVIF", speed=10, exif=tags(orientation)),
        upright(_by_pillow(encode(image, "AVIF", speed=10)), orientation),
    )


def _by_pillow(body: bytes) -> Pixels:
    with Image.open(io.BytesIO(body)) as opened:
        if opened.mode == "RGBA":
            return over_white(np.asarray(opened))
        return np.asarray(opened.convert("RGB"))

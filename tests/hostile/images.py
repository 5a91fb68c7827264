"""Unusual but valid images, which must be decoded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from server.imaging.decode import FORMATS
from tests.hostile.build import (
    APP1,
    ORIENTATION,
    SHORT,
    avif_with_exif,
    bmp,
    chunk,
    deflated_zeros,
    encode,
    exif,
    gif_with,
    jpeg_with,
    picture,
    png_pixels,
    png_with,
    segment,
    sub_blocks,
)

UNDEFINED = 7


def jpegs() -> Iterator[tuple[str, bytes]]:
    side = exif((ORIENTATION, SHORT, 1, 6))
    for mode in ("L", "RGB", "CMYK"):
        yield f"jpeg of {mode}", encode(picture(mode=mode), "JPEG")
    yield "progressive jpeg", encode(picture(), "JPEG", progressive=True)
    yield "jpeg with restarts", encode(picture(), "JPEG", restart_marker_blocks=1)
    yield "jpeg of 1 x 1", encode(picture(1, 1), "JPEG")
    yield "jpeg on its side", jpeg_with(segment(APP1, b"Exif\0\0" + side))
    yield "jpeg with a restart marker outside a scan", jpeg_with(b"\xff\xd3")
    yield "jpeg with a length of zero", jpeg_with(b"\xff\xe0\0\0")
    yield "jpeg with two directories of exif", jpeg_with(*[segment(APP1, b"Exif\0\0" + side)] * 2)
    yield (
        "jpeg of two pictures",
        encode(picture(), "MPO", save_all=True, append_images=[picture(10, 10)]),
    )
    yield "jpeg with fill bytes", jpeg_with(b"\xff" * 5000)
    yield "jpeg with 4000 segments", jpeg_with(*[segment(0xE5, b"x")] * 4000)
    yield "jpeg with broken exif", jpeg_with(segment(APP1, b"Exif\0\0nonsense"))
    yield "jpeg with a broken profile", jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1nonsense"))
    # All entries point to the same 50 kB, which a reader of all of them copies 1200 times.
    entries = [(tag, UNDEFINED, 50_000, 14_500) for tag in range(1200)]
    bomb = exif(*entries, data=bytes(50_100))
    yield "jpeg with an exif bomb", jpeg_with(segment(APP1, b"Exif\0\0" + bomb))
    yield "png with an exif bomb", png_with(chunk(b"eXIf", bomb))
    yield "webp with an exif bomb", encode(picture(), "WEBP", exif=bomb)


def pngs() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "LA", "RGB", "RGBA", "P"):
        yield f"png of {mode}", encode(picture(mode=mode), "PNG")
    yield "png of I;16", encode(picture(mode="L").convert("I;16"), "PNG")
    yield "png of 1 x 1", encode(picture(1, 1), "PNG")
    yield "png with a transparent palette entry", encode(picture(mode="P"), "PNG", transparency=3)
    yield (
        "png with half transparent palette",
        encode(picture(mode="P"), "PNG", transparency=bytes(range(256))),
    )
    for color, channels in ((2, 3), (4, 2), (6, 4)):
        deep = np.random.default_rng(0).integers(0, 65536, (30, 40, channels)).astype(np.uint16)
        yield f"16-bit png of type {color}", png_pixels(deep, color)
    yield "interlaced png", png_pixels(np.asarray(picture()), 2, interlaced=True)
    yield (
        "animated png",
        encode(picture(), "PNG", save_all=True, append_images=[picture(mode="L").convert("RGB")]),
    )
    yield "png that ends in the middle of its last chunk", encode(picture(), "PNG")[:-10]
    inflating = deflated_zeros(1)
    yield (
        "png with a text bomb",
        png_with(*[chunk(b"zTXt", b"k%d\0\0" % n + inflating) for n in range(200)]),
    )
    yield "png with a profile bomb", png_with(chunk(b"iCCP", b"name\0\0" + deflated_zeros(100)))
    yield (
        "png with 1000 profiles",
        png_with(*[chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(9999)))] * 1000),
    )
    yield "png with a large unknown chunk", png_with(chunk(b"ruSt", bytes(200_000)))
    # 100 MB follow the only row.
    body = png_pixels(np.zeros((1, 1, 3), np.uint8), 2)
    start = body.index(b"IDAT") - 4
    yield "png whose pixels go on", body[:start] + chunk(b"IDAT", deflated_zeros(100)) + body[-12:]


def others() -> Iterator[tuple[str, bytes]]:
    still = picture()
    moving = [picture(mode="L").convert("RGB")] * 20
    for form in ("GIF", "WEBP"):
        yield f"{form} of 1 x 1", encode(picture(1, 1), form)
        yield f"animated {form}", encode(still, form, save_all=True, append_images=moving)
    yield "lossless webp", encode(picture(mode="RGBA"), "WEBP", lossless=True)
    yield "interlaced gif", encode(picture(mode="P"), "GIF", interlace=1)
    yield "transparent gif", encode(picture(mode="P"), "GIF", transparency=0)
    yield "gif with a large comment", gif_with(b"\x21\xfe" + sub_blocks(bytes(200_000)))
    yield "gif with many comments", gif_with(*[b"\x21\xfe" + sub_blocks(b"comment")] * 2000)
    yield "gif with bytes between its blocks", gif_with(bytes(1000), b"\x21\xfe\0", b"junk")
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp of {mode}", encode(picture(mode=mode), "BMP")
    yield "bmp from the top down", bmp(4, -4, 24, bytes(48))
    yield "bmp of 16 bits", bmp(4, 4, 16, bytes(32))


def avifs() -> Iterator[tuple[str, bytes]]:
    if "AVIF" not in FORMATS:
        return
    for mode in ("L", "RGB", "RGBA"):
        yield f"avif of {mode}", encode(picture(mode=mode), "AVIF")
    yield "avif of 1 x 1", encode(picture(1, 1), "AVIF")
    moving = {"save_all": True, "append_images": [picture(mode="L")] * 5}
    yield "animated avif", encode(picture(), "AVIF", **moving)
    yield "avif and zip", encode(picture(), "AVIF") + b"PK\x05\x06" + bytes(18)
    yield "avif with a profile", encode(picture(), "AVIF", icc_profile=bytes(200_000))
    entries = [(tag, UNDEFINED, 50_000, 14_500) for tag in range(1200)]
    bomb = exif(*entries, data=bytes(50_100))
    yield "avif with an exif bomb", avif_with_exif(bomb)


def polyglots() -> Iterator[tuple[str, bytes]]:
    """Images by their signature that are also files of another type."""
    html = b"<html><script>alert(1)</script></html>"
    archive = b"PK\x05\x06" + bytes(18)
    yield "jpeg and zip", encode(picture(), "JPEG") + archive
    yield "jpeg and a film", encode(picture(), "JPEG") + b"\xff\xda" * 50_000
    yield "jpeg and php", jpeg_with(segment(0xFE, b"<?php system($_GET[0]); ?>"))
    yield "png and html", encode(picture(), "PNG") + html
    yield "png of html", png_with(chunk(b"tEXt", b"Comment\0" + html))
    yield "gif and script", encode(picture(mode="P"), "GIF") + b"*/=1;alert(1)"
    yield "bmp and script", encode(picture(), "BMP") + b"*/=1;alert(1)"
    yield "webp and zip", encode(picture(), "WEBP") + archive


def images() -> Iterator[tuple[str, bytes, int]]:
    for files in (jpegs, pngs, others, avifs, polyglots):
        for name, body in files():
            yield name, body, 200

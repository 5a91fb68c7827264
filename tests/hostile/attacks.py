"""Files that must be refused, with the status that each must get."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator

from PIL import Image

from server.imaging.decode import FORMATS
from tests.hostile.build import (
    PNG,
    avif_of,
    bmp,
    box,
    chunk,
    encode,
    gif_with,
    header,
    jpeg_with,
    picture,
    png,
    png_with,
    segment,
    sub_blocks,
    webp_canvas,
)


def broken() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    for form in FORMATS:
        body = encode(picture(), form)
        for share in (0.2, 0.5, 0.7):
            yield f"{share:.0%} of a {form}", body[: max(int(len(body) * share), 20)]
    body = encode(picture(), "PNG")
    yield "png with a wrong checksum", body[:40] + b"?" + body[41:]
    yield "png without pixels", png(header(40, 30))
    yield "png with too few pixels", png(header(40, 30), chunk(b"IDAT", zlib.compress(bytes(100))))
    yield "png of 0 x 0", png(header(0, 0), chunk(b"IDAT", zlib.compress(b"")))
    yield "png with a palette that is missing", png(header(1, 1, 8, 3), chunk(b"IDAT", b"junk"))
    yield "png that ends in a length", PNG + header(40, 30) + b"\0\0"
    yield "png with a length beyond its end", PNG + header(40, 30) + b"\xff\xff\xff\xffIDAT"
    yield "jpeg without a picture", b"\xff\xd8\xff\xd9"
    yield "jpeg without a frame", b"\xff\xd8" + segment(0xDA, b"\x01\x01\0\0\x3f\0") + b"\0\xff\xd9"
    yield "jpeg of fill bytes", b"\xff\xd8" + b"\xff" * 200_000
    yield "jpeg with a segment of no length", b"\xff\xd8\xff\xe0\0\0\xff\xd9"
    yield "gif without a picture", gif_with()[:13] + b"\x3b"
    yield "gif that ends in a comment", b"GIF89a" + bytes(7) + b"\x21\xfe\xff"
    yield "webp of noise", b"RIFF\x40\0\0\0WEBPVP8 " + bytes(64)
    if "AVIF" in FORMATS:
        yield "avif without a picture", avif_of(b"", 1, b"hvc1")
        yield "avif of noise", avif_of(bytes(range(100)), 1)
    yield "bmp without pixels", bmp(40, 30, 24, b"")
    yield "bmp of a strange depth", bmp(4, 4, 17, bytes(99))
    yield "bmp with too many colours", bmp(4, 4, 8, bytes(99))[:46] + b"\xff" * 4 + bytes(99)


def scans(count: int, progressive: bool) -> bytes:
    """A JPEG with ``count`` more scans of a few bytes; a sequential scan has one component."""
    body = encode(picture(1000, 900), "JPEG", progressive=progressive)
    scan = (
        body[body.rindex(b"\xff\xda") :][:10]
        if progressive
        else segment(0xDA, b"\x01\x01\0\0\x3f\0")
    )
    start = len(body) - 2 if progressive else body.index(b"\xff\xda")
    return body[:start] + scan * count + b"\xff\xd9"


def too_large() -> Iterator[tuple[str, bytes]]:
    yield (
        "png of 4 gigapixels",
        png(header(65000, 65000), chunk(b"IDAT", zlib.compress(bytes(100_000)))),
    )
    yield (
        "png of 2 ** 62 pixels",
        png(header(2**31 - 1, 2**31 - 1), chunk(b"IDAT", zlib.compress(b""))),
    )
    yield "jpeg of 4 gigapixels", resized_jpeg(65500, 65500)
    yield "gif of 4 gigapixels", b"GIF89a" + struct.pack("<HH", 65535, 65535) + gif_with()[10:]
    yield "webp of 4 gigapixels", webp_canvas(2**24, 2**8)
    yield "bmp of 2 ** 62 pixels", bmp(2**31 - 1, 2**31 - 1, 24, bytes(99))
    yield "too many pixels", encode(Image.new("L", (1001, 1000)), "PNG")
    yield "too long a side", encode(Image.new("L", (4001, 1)), "PNG")
    yield "too narrow", encode(Image.new("L", (1, 4000)), "PNG")
    yield "jpeg of empty segments", jpeg_with(*[segment(0xE5)] * 60_000)
    yield "jpeg of empty tables", jpeg_with(*[segment(0xC4)] * 60_000)
    yield "jpeg of empty scans", scans(10_000, progressive=True)
    yield "jpeg of empty scans of one component", scans(10_000, progressive=False)
    yield "png of empty chunks", png_with(*[chunk(b"ruSt")] * 20_000)
    yield "png of empty pixels", png_with(*[chunk(b"IDAT")] * 20_000)
    yield "gif of tiny comments", gif_with(b"\x21\xfe" + sub_blocks(bytes(100_000), size=1))
    yield "gif of empty comments", gif_with(*[b"\x21\xfe\0"] * 50_000)


def too_large_avif() -> Iterator[tuple[str, bytes]]:
    if "AVIF" not in FORMATS:
        return
    yield "avif of 4 gigapixels", avif_that_declares(encode(picture(), "AVIF"), 65535, 65535)
    large = encode(Image.new("L", (2000, 1500)), "AVIF", speed=10)
    yield "avif whose data are larger than it says", avif_that_declares(large, 40, 30)
    data = large[large.index(b"mdat") + 4 :]
    yield "avif of many large pictures", avif_of(data, 50)
    yield "avif of overlapping pieces", avif_of(bytes(1000), 1, pieces=1000)
    yield "avif of empty units", avif_of(b"\x12\0" * 20_000, 1)
    yield "avif of empty boxes", avif_of(b"", 1) + box(b"free") * 20_000


def avif_that_declares(body: bytes, width: int, height: int) -> bytes:
    """An AVIF whose container declares another size than its data have."""
    start = body.index(b"ispe") + 8
    return body[:start] + struct.pack(">II", width, height) + body[start + 8 :]


def resized_jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header declares a size other than its own."""
    body = bytearray(encode(picture(), "JPEG"))
    frame = body.index(b"\xff\xc0")
    body[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(body)


def foreign() -> Iterator[tuple[str, bytes]]:
    for form in (
        "TIFF",
        "PPM",
        "ICO",
        "TGA",
        "PDF",
        "EPS",
        "PCX",
        "SGI",
        "XBM",
        "JPEG2000",
        "DDS",
    ):
        yield form, encode(picture(mode="1" if form == "XBM" else "RGB"), form)
    yield "tiff of zeros", b"II*\0" + bytes(100)
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield (
        "svg with entities",
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b"<svg>&x;</svg>",
    )
    yield "html", b"<!doctype html><img src=x onerror=alert(1)>"
    yield "html and jpeg", b"<html><!--" + encode(picture(), "JPEG")
    yield "javascript", b"alert(1)"
    yield "url", b"http://169.254.169.254/latest/meta-data/"
    yield "data url", b"data:image/png;base64,iVBORw0KGgo="
    yield "file url", b"file:///etc/passwd"
    yield "path", b"/etc/passwd"
    yield "path upwards", b"../../../../etc/passwd\0.png"
    yield "json", b'{"image": "/etc/passwd"}'
    yield (
        "imagemagick's language",
        b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://x/|ls \"-la)'\npop",
    )
    yield "postscript", b"%!PS-Adobe-3.0\n(/etc/passwd) (r) file"
    yield "php", b"<?php system($_GET[0]); ?>"
    yield "pickle", pickle.dumps(print)
    yield "gzip", gzip.compress(encode(picture(), "PNG"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("image.png", encode(picture(), "PNG"))
    yield "zip", archive.getvalue()
    yield "elf", b"\x7fELF\x02\x01\x01" + bytes(57)
    yield "fits", b"SIMPLE  =                    T".ljust(2880)
    yield "photoshop", b"8BPS\0\1" + bytes(20)
    yield "sound", b"RIFF\x24\0\0\0WAVEfmt " + bytes(20)
    yield "text that begins like a bitmap", b"BMW is a car"
    yield "png with line ends changed", encode(picture(), "PNG").replace(b"\r\n", b"\n")
    yield "png that is not at the start", b"\n" + encode(picture(), "PNG")
    for compression, bits in ((1, 8), (2, 4)):
        yield (
            f"bmp with run lengths of {bits} bits",
            bmp(999, 999, bits, b"\0\0" * 999, compression, bytes(1024)),
        )


def attacks() -> Iterator[tuple[str, bytes, int]]:
    for status, files in ((400, broken), (413, too_large), (413, too_large_avif), (415, foreign)):
        for name, body in files():
            yield name, body, status

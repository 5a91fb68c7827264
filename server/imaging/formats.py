"""What of an encoded file a decoder gets to see: its format, by content, and no more than its pixels need.

Profiles, comments, thumbnails, EXIF and further pictures are cut out of a JPEG, PNG or GIF before
Pillow reads it. No pixel depends on them, and they are where a small body grows: text and profiles
that inflate, EXIF entries that all point to the same bytes, and millions of empty parts, each a
step of Python that holds up all threads (20 MB of them: 4 seconds). A WebP is parsed by libwebp
alone, and a BMP has no such parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.errors import BadImage, TooLarge, UnsupportedFormat
from server.imaging.orientation import read_orientation

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_SUPPORTED = "allowed are JPEG, PNG, WebP, GIF and BMP"
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # known sizes: "BM" alone begins many a text
_BITMAP_RUN_LENGTHS = (1, 2)
_PARTS = 5000  # a file may have so many,
_BYTES_PER_PART = 512  # or more where they have so many bytes on average
# A progressive JPEG has about 10; each costs as much time as a whole picture, and can have a few
# bytes.
_SCANS = 100

_JPEG_MARKER = re.compile(
    rb"\xff[^\x00\xff]"
)  # of many fill bytes the last; with a "+" the search would be quadratic
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # between restarts a scan goes on
_SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_COMMENT = 0xFE
_JPEG_DROPPED = {
    *range(_APP1, 0xEE),
    0xEF,
    _COMMENT,
}  # all APPn but JFIF's and Adobe's, which tell colours
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_GIF_EXTENSION = 0x21
_GIF_IMAGE = 0x2C
_GIF_CONTROL = 0xF9


@dataclass(frozen=True)
class Container:
    """An encoded picture, less what its pixels do not need.

    Attributes:
        form: one of `FORMATS`.
        orientation: how it is to be turned: EXIF's, from 1 to 8.
        canvas: ``(width, height)`` where the decoder would allocate it before it could be asked,
            else None.
    """

    form: str
    body: bytes
    orientation: int = 1
    canvas: tuple[int, int] | None = None


def open_container(body: bytes) -> Container:
    """Tell the format of ``body`` and cut out what its pixels do not need.

    Raises:
        UnsupportedFormat: it does not begin as one of `FORMATS` does, or is a kind of bitmap that
            is not decoded.
        BadImage: it ends before its pixels begin.
        TooLarge: it consists of too many parts.
    """
    try:
        match sniff(body):
            case "JPEG":
                return _jpeg(body)
            case "PNG":
                return _png(body)
            case "GIF":
                return _gif(body)
            case "WEBP":
                return _webp(body)
            case "BMP":
                return _bmp(body)
    except IndexError:
        raise BadImage("the image is corrupt or truncated") from None
    raise UnsupportedFormat(f"the body is not an image of a supported format; {_SUPPORTED}")


def sniff(body: bytes) -> str | None:
    """Which of `FORMATS` ``body`` begins as, if any."""
    if body.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if body.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "WEBP"
    if body.startswith(b"BM") and int.from_bytes(body[14:18], "little") in _BITMAP_HEADERS:
        return "BMP"
    return None


class _Cuts:
    """Collects the kept stretches of a body, and counts its parts. Raises `TooLarge` at too many."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)
        self._kept: list[memoryview] = []
        self._parts_left = _PARTS + len(body) // _BYTES_PER_PART

    def count(self) -> None:
        self._parts_left -= 1
        if self._parts_left < 0:
            raise TooLarge("the image consists of too many parts; save it again without metadata")

    def keep(self, start: int, end: int | None = None) -> None:
        self._kept.append(self._body[start:end])

    def join(self) -> bytes:
        return b"".join(self._kept)


def _jpeg(body: bytes) -> Container:
    """Segments as in ITU-T T.81, annex B."""
    cuts = _Cuts(body)
    orientation = 1
    end = 2
    one_scan_of = None  # so many components
    cuts.keep(0, 2)
    while found := _JPEG_MARKER.search(body, end):
        cuts.count()
        marker = found.end() - 1
        if body[marker] == _START_OF_SCAN:
            # A decoder stops after the first scan if the frame is sequential and the scan has all
            # of its components. Counting is quick and mostly enough, although bytes within segments
            # and behind the picture look so too.
            if body[marker + 3] != one_scan_of and body.count(b"\xff\xda", marker) >= _SCANS:
                _count_scans(body, marker)
            cuts.keep(marker - 1)
            return Container("JPEG", cuts.join(), orientation)
        if body[marker] == _END_OF_IMAGE:
            break
        end = marker + 1 + _number(body, marker + 1, 2)
        if body[marker] in _SEQUENTIAL_FRAMES:
            one_scan_of = body[marker + 8]
        if body[marker] not in _JPEG_DROPPED:
            cuts.keep(marker - 1, end)
        elif body[marker] == _APP1 and body.startswith(b"Exif\0\0", marker + 3):
            orientation = read_orientation(body[marker + 9 : end])
    raise BadImage("the image is corrupt or truncated")


def _count_scans(body: bytes, marker: int) -> None:
    """Raises `TooLarge` at too many scans, up to the end of the picture; what follows it is none of ours."""
    cuts = _Cuts(body)
    scans = 0
    while body[marker] != _END_OF_IMAGE:
        cuts.count()
        scans += body[marker] == _START_OF_SCAN
        if scans > _SCANS:
            raise TooLarge(f"the image has more than {_SCANS} scans", limit=_SCANS)
        found = _JPEG_SCAN_END.search(body, marker + 1 + _number(body, marker + 1, 2))
        if not found:
            break
        marker = found.end() - 1


def _png(body: bytes) -> Container:
    """Chunks as in the PNG specification, section 5.3, up to the end or to an animation's second frame."""
    cuts = _Cuts(body)
    orientation = 1
    start = 8
    cuts.keep(0, 8)
    while start < len(body):
        cuts.count()
        kind = body[start + 4 : start + 8]
        end = start + 12 + _number(body, start, 4)
        if kind in _PNG_KEPT:
            cuts.keep(start, end)
        elif kind == b"eXIf":
            orientation = read_orientation(body[start + 8 : end - 4])
        if kind in (b"IEND", b"fdAT"):
            break
        start = end
    return Container("PNG", cuts.join(), orientation)


def _gif(body: bytes) -> Container:
    """Blocks as in the GIF89a specification, up to the first picture."""
    cuts = _Cuts(body)
    start = 13
    if body[10] & 0x80:
        start += 3 << (body[10] & 7) + 1
    cuts.keep(0, start)
    while body[start] == _GIF_EXTENSION:
        end = start + 2
        while size := body[end]:
            cuts.count()
            end += size + 1
        cuts.count()
        end += 1
        if body[start + 1] == _GIF_CONTROL:
            cuts.keep(start, end)
        start = end
    if body[start] != _GIF_IMAGE:
        raise BadImage("the image is corrupt or truncated")
    cuts.keep(start)
    return Container("GIF", cuts.join())


def _webp(body: bytes) -> Container:
    """A decoder allocates two canvases of the size in the extended header (RFC 9649, section 2.7) as it is created."""
    canvas = None
    if body[12:16] == b"VP8X":
        sides = (int.from_bytes(body[at : at + 3], "little") for at in (24, 27))
        canvas = next(sides) + 1, next(sides) + 1
    return Container("WEBP", body, canvas=canvas)


def _bmp(body: bytes) -> Container:
    """Pillow expands run lengths in Python, which takes seconds and holds up every other thread meanwhile."""
    if body[14] != 12 and _number(body, 30, 4, "little") in _BITMAP_RUN_LENGTHS:
        raise UnsupportedFormat(
            f"the bitmap is compressed by run lengths; save it without; {_SUPPORTED}"
        )
    return Container("BMP", body)


def _number(body: bytes, start: int, size: int, order: str = "big") -> int:
    """Raises IndexError where ``body`` ends before."""
    if start + size > len(body):
        raise IndexError
    return int.from_bytes(body[start : start + size], "big" if order == "big" else "little")

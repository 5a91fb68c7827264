"""Every place where a file may say how it is turned, and what that means."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.hostile.build import APP1, ORIENTATION, SHORT, chunk, exif, segment

Pixels = npt.NDArray[np.uint8]

MAKER = 0x010F
_EXIF = b"Exif\0\0"

# EXIF 2.32, section 4.6.4.
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


def upright(stored: Pixels, orientation: int) -> Pixels:
    """Return ``stored (H, W, C)`` as it is meant to be shown."""
    return np.ascontiguousarray(_UPRIGHT[orientation](stored))


def directory(orientation: int) -> bytes:
    """A TIFF directory with this orientation, or with another tag alone if it is 0."""
    return exif((ORIENTATION if orientation else MAKER, SHORT, 1, orientation))


def xmp(orientation: int, choose: random.Random) -> bytes:
    """An XMP packet, with the property as an attribute or as an element."""
    if choose.random() < 0.5:
        return f'<x><rdf tiff:Orientation="{orientation}"/></x>'.encode()
    return f"<x><tiff:Orientation>{orientation}</tiff:Orientation></x>".encode()


def tags(orientation: int) -> Image.Exif:
    """EXIF as Pillow writes it."""
    found = Image.Exif()
    found[ORIENTATION] = orientation
    return found


def jpeg_segments(orientation: int, choose: random.Random) -> tuple[str, bytes, bool]:
    """Return a name, segments, and whether Pillow reads them alike."""

    def of_exif(*values: int) -> bytes:
        return b"".join(segment(APP1, _EXIF + directory(value)) for value in values)

    packet = segment(APP1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation, choose))
    other = orientation % 8 + 1
    other_packet = segment(APP1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(other, choose))
    return choose.choice(
        [
            ("exif", of_exif(orientation), True),
            ("two exif", of_exif(orientation, other), True),
            ("exif and another without", of_exif(orientation, 0), True),
            ("exif after another without", of_exif(0, orientation), False),
            ("broken exif first", segment(APP1, _EXIF + b"?") + of_exif(orientation), False),
            ("xmp", packet, True),
            ("exif without, and xmp", of_exif(0) + packet, True),
            ("xmp that exif overrules", other_packet + of_exif(orientation), True),
        ]
    )


def png_chunks(orientation: int, choose: random.Random) -> tuple[str, bytes]:
    """Return a name and chunks."""
    data = directory(orientation)
    packet = xmp(orientation, choose)
    digits = (_EXIF + data).hex()
    lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    profile = f"\nexif\n{len(digits) // 2:8}\n{lines}\n".encode()
    raw = b"Raw profile type exif\0"
    key = b"XML:com.adobe.xmp\0"
    return choose.choice(
        [
            ("eXIf", chunk(b"eXIf", data)),
            ("eXIf with a prefix", chunk(b"eXIf", _EXIF + data)),
            ("tEXt profile", chunk(b"tEXt", raw + profile)),
            ("zTXt profile", chunk(b"zTXt", raw + b"\0" + zlib.compress(profile))),
            ("iTXt profile", chunk(b"iTXt", raw + b"\0\0\0\0" + profile)),
            (
                "compressed iTXt profile",
                chunk(b"iTXt", raw + b"\1\0en\0key\0" + zlib.compress(profile)),
            ),
            ("eXIf and a profile", chunk(b"eXIf", data) + chunk(b"tEXt", raw + b"\n\n\n00")),
            ("tEXt exif", chunk(b"tEXt", b"exif\0" + data)),
            ("iTXt xmp", chunk(b"iTXt", key + b"\0\0\0\0" + packet)),
            ("zTXt xmp", chunk(b"zTXt", key + b"\0" + zlib.compress(packet))),
            ("eXIf without, and xmp", chunk(b"eXIf", directory(0)) + chunk(b"tEXt", key + packet)),
        ]
    )

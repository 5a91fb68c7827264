"""How a picture is to be turned so that it stands upright: the one EXIF tag that changes what is seen.

Pillow reads all tags of a directory, each into memory of its own; before its version 13 it did so
even where they all point to the same bytes, by which 64 kB become many megabytes.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image

_TAG = 0x0112
_SHORT = 3
_LONG = 4
_ENTRIES = 1000  # a camera writes a few dozen
# EXIF 2.32, section 4.6.4.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in ``exif``, a TIFF directory with or without ``Exif`` before it (TIFF 6.0, section 2).

    Broken EXIF data does not make a picture unreadable: it counts as 1, upright.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    if not exif.startswith((b"II*\0", b"MM\0*")):
        return 1

    def number(start: int, size: int) -> int:
        return int.from_bytes(exif[start : start + size], order)

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), _ENTRIES)):
        start = directory + 2 + 12 * entry
        kind = number(start + 2, 2)
        if number(start, 2) == _TAG and kind in (_SHORT, _LONG):
            value = number(start + 8, 2 if kind == _SHORT else 4)
            return value if value in _UPRIGHT else 1
    return 1


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """``image`` turned upright."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image

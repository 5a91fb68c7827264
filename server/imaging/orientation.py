"""The orientation of an image: the only metadata that changes what a viewer shows.

It is the EXIF tag of that name, or where EXIF has none, the XMP property ``tiff:Orientation``.
Pillow reads all tags of a directory, each into memory of its own. Before version 13 it did so even
where all tags point to the same bytes, so that 64 kB of EXIF became many megabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import numpy as np
from PIL import Image

_EXIF_PREFIX = b"Exif\0\0"
# TIFF 6.0, section 2, and each with its magic number in the wrong byte order, as Pillow allows.
_LITTLE_ENDIAN = (b"II*\0", b"II\0*")
_BIG_ENDIAN = (b"MM\0*", b"MM*\0")

_DIRECTORY_OFFSET = 4
# A directory begins with the number of its entries.
_COUNT_BYTES = 2
_ENTRY = [("tag", "u2"), ("type", "u2"), ("count", "u4"), ("value", "V4")]
_VALUE_OFFSET = 8  # within an entry
_FIELD_BYTES = 4
# Bytes by type: SHORT, LONG, their signed types, IFD.
_VALUE_BYTES = {3: 2, 4: 4, 8: 2, 9: 4, 13: 4}
_ORIENTATION_TAG = 0x0112

# As an attribute or as an element; the prefix is always "tiff" (XMP specification, part 1, 7.5).
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

UPRIGHT = 1
# EXIF 2.32, section 4.6.4: what makes each orientation upright.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(exif: Iterable[bytes], xmp: bytes = b"") -> int:
    """Return the orientation, 1 to 8, that a file declares.

    Broken metadata does not make an image unreadable: its orientation is 1, upright.

    Args:
        exif: TIFF directories, each with or without the prefix ``Exif``. The first that has an
            orientation counts.
        xmp: an XMP packet. It counts if no directory has an orientation.
    """
    for directory in exif:
        value = read_exif_tag(directory)
        if value is not None:
            return _valid(value)
    match = _XMP_ORIENTATION.search(xmp)
    return _valid(int(match[1])) if match else UPRIGHT


def _valid(value: int) -> int:
    return value if value in _TRANSPOSITIONS else UPRIGHT


def read_exif_tag(exif: bytes) -> int | None:
    """Return the value of the orientation's tag in the TIFF directory ``exif``, None without one.

    Of several such tags the first whose type is an integer counts.
    """
    # Some writers of PNG repeat the prefix that their library adds.
    exif = exif.removeprefix(_EXIF_PREFIX).removeprefix(_EXIF_PREFIX)
    if exif.startswith(_LITTLE_ENDIAN):
        return _find_tag(exif, "little")
    if exif.startswith(_BIG_ENDIAN):
        return _find_tag(exif, "big")
    return None


def _find_tag(exif: bytes, order: Literal["little", "big"]) -> int | None:
    def read_number(start: int, size: int) -> int:
        end = start + size
        return int.from_bytes(exif[start:end], order)

    directory = read_number(_DIRECTORY_OFFSET, 4)
    start = directory + _COUNT_BYTES
    dtype = np.dtype(_ENTRY).newbyteorder(order)
    complete = max(len(exif) - start, 0) // dtype.itemsize
    number = min(read_number(directory, _COUNT_BYTES), complete)
    # Not a loop: a file may have megabytes of entries.
    entries = np.frombuffer(exif[start:], dtype, number)
    is_integer = np.isin(entries["type"], list(_VALUE_BYTES))
    found = (entries["tag"] == _ORIENTATION_TAG) & is_integer & (entries["count"] > 0)
    if not found.any():
        return None
    index = int(found.argmax())
    value_bytes = _VALUE_BYTES[int(entries["type"][index])]
    all_bytes = int(entries["count"][index]) * value_bytes
    value = start + index * dtype.itemsize + _VALUE_OFFSET
    if all_bytes > _FIELD_BYTES:
        # The field holds the offset of the values instead.
        value = read_number(value, _FIELD_BYTES)
    return read_number(value, value_bytes) if value + all_bytes <= len(exif) else None


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Return ``image`` upright. An image that is upright already is not copied."""
    if orientation not in _TRANSPOSITIONS:
        return image
    return image.transpose(_TRANSPOSITIONS[orientation])

"""The EXIF orientation of an image, the only EXIF tag that changes what a viewer shows.

Pillow reads all tags of a directory, each into memory of its own. Before version 13 it did so even
where all tags point to the same bytes, so that 64 kB of EXIF became many megabytes.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image

_EXIF_PREFIX = b"Exif\0\0"
_LITTLE_ENDIAN = b"II*\0"
_BIG_ENDIAN = b"MM\0*"

# TIFF 6.0, section 2. Offsets within an entry; a directory begins with the number of its entries.
_ENTRY_BYTES = 12
_COUNT_BYTES = 2
_TYPE_OFFSET = 2
_VALUE_OFFSET = 8
_VALUE_BYTES = {3: 2, 4: 4}  # by type: SHORT, LONG

_ORIENTATION_TAG = 0x0112
_MAX_ENTRIES = 1000  # a camera writes a few dozen

_NORMAL = 1
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


def read_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, in the TIFF directory ``exif``.

    The directory may follow the prefix ``Exif``. Broken EXIF data does not make an image
    unreadable: its orientation is 1, upright.
    """
    exif = exif.removeprefix(_EXIF_PREFIX)
    order: Literal["little", "big"]
    if exif.startswith(_LITTLE_ENDIAN):
        order = "little"
    elif exif.startswith(_BIG_ENDIAN):
        order = "big"
    else:
        return _NORMAL

    def read_number(start: int, size: int) -> int:
        end = start + size
        return int.from_bytes(exif[start:end], order)

    directory = read_number(4, 4)
    entries = read_number(directory, _COUNT_BYTES)
    for index in range(min(entries, _MAX_ENTRIES)):
        start = directory + _COUNT_BYTES + _ENTRY_BYTES * index
        tag = read_number(start, 2)
        value_bytes = _VALUE_BYTES.get(read_number(start + _TYPE_OFFSET, 2))
        if tag == _ORIENTATION_TAG and value_bytes:
            value = read_number(start + _VALUE_OFFSET, value_bytes)
            return value if value in _TRANSPOSITIONS else _NORMAL
    return _NORMAL


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Return ``image`` upright. An image that is upright already is not copied."""
    if orientation not in _TRANSPOSITIONS:
        return image
    return image.transpose(_TRANSPOSITIONS[orientation])

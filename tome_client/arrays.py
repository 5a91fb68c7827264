"""Encode numpy arrays as PNG, without Pillow."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels (PNG, third edition, table 8)
_FAST = 1  # level of compression: the file is larger, but takes no longer to decode
_NO_FILTER = b"\0"  # before each row (PNG, third edition, section 9)


def encode_array(array: np.ndarray[Any, Any]) -> bytes:
    """Return an image ``(H, W)`` or ``(H, W, channels)`` as a PNG file.

    Channels are grey, grey and alpha, red-green-blue, or these and alpha. True is white.

    Raises:
        TypeError: the dtype is neither bool, uint8 nor uint16.
        ValueError: the shape is another one.
    """
    _check_shape(array.shape)
    if array.dtype.kind == "b":
        array = array.astype("uint8") * 255
    _check_dtype(array.dtype)
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    big_endian = array.astype(array.dtype.newbyteorder(">"), copy=False)
    rows = b"".join(_NO_FILTER + row.tobytes() for row in big_endian)
    bits = 8 * array.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = (
        _chunk(b"IHDR", header),
        _chunk(b"IDAT", zlib.compress(rows, _FAST)),
        _chunk(b"IEND", b""),
    )
    return _SIGNATURE + b"".join(chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    """Return one chunk (PNG, third edition, section 5.3)."""
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def _check_shape(shape: tuple[int, ...]) -> None:
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in _COLOUR_TYPES)
    if is_image and 0 not in shape:
        return
    hint = ""
    if len(shape) == 3 and shape[0] in _COLOUR_TYPES:
        hint = "; if its channels come first, pass array.transpose(1, 2, 0)"
    if len(shape) == 4:
        hint = "; several images are passed to classify_many or embed_many"
    raise ValueError(
        "an array must have the shape (height, width) or (height, width, channels) with 1 to 4"
        f" channels, not {shape}{hint}"
    )


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.kind == "u" and dtype.itemsize in (1, 2):
        return
    hint = "convert it, as in array.astype('uint8')"
    if dtype.kind == "f":
        hint = "scale it, as in (array * 255).round().astype('uint8') if it has values from 0 to 1"
    raise TypeError(
        "an array must have the dtype uint8, with values from 0 to 255, or uint16, from 0 to 65535,"
        f" not {dtype}; {hint}"
    )

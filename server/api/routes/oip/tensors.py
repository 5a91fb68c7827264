"""Parsers for the data of one input tensor, as JSON or as binary data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from server.api.pipeline.base64_image import decode_base64
from server.errors import BadRequest

# Before each element of a BYTES tensor stands its length in bytes, little-endian.
LENGTH_BYTES = 4
_FLOAT_BYTES = 4


def parse_bytes_tensor(shape: tuple[int, ...], data: Any) -> list[bytes]:
    """Return the elements of a ``BYTES`` tensor of shape ``(n,)``.

    Args:
        data: a view of the binary data; or the ``data`` of the JSON, a list of base64 strings (RFC
            4648), since a JSON string cannot hold all bytes.

    Raises:
        BadRequest: the data is malformed, or has another number of elements.
    """
    if isinstance(data, memoryview):
        elements = split_bytes_elements(data)
    else:
        elements = decode_base64_elements(data)
    if len(elements) != shape[0]:
        raise BadRequest(f"the shape says {shape[0]} elements, but there are {len(elements)}")
    return elements


def split_bytes_elements(data: memoryview) -> list[bytes]:
    """Return the elements of a serialized ``BYTES`` tensor. Raises `BadRequest`."""
    elements = []
    end = 0
    while end < len(data):
        begin = end + LENGTH_BYTES
        length = int.from_bytes(data[end:begin], "little")
        end = begin + length
        if begin > len(data) or end > len(data):
            raise BadRequest(
                "a BYTES element is longer than the data; each element is its length in 4 bytes,"
                " then its bytes"
            )
        elements.append(bytes(data[begin:end]))
    return elements


def decode_base64_elements(data: Any) -> list[bytes]:
    """Return the bytes of each string in a JSON list of base64. Raises `BadRequest`."""
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise BadRequest(
            "data of a BYTES input must be a flat list of strings in JSON, each an image in base64"
        )
    try:
        return [decode_base64(text.encode("ascii")) for text in data]
    except ValueError:
        raise BadRequest(
            "data of a BYTES input must be base64 in JSON; send images as binary data instead"
        ) from None


def parse_float_tensor(shape: tuple[int, ...], data: Any) -> npt.NDArray[np.float32]:
    """Return an ``FP32`` tensor of ``shape``, in row-major order.

    Args:
        data: a view of the binary data, little-endian; or the ``data`` of the JSON, a list of
            numbers, flat or nested.

    Raises:
        BadRequest: the data is malformed, of another size, or not finite.
    """
    count = math.prod(shape)
    if isinstance(data, memoryview):
        values = floats_from_binary(shape, data)
    else:
        values = floats_from_json(data)
    if values.size != count:
        raise BadRequest(f"the shape {list(shape)} has {count} numbers, but data has {values.size}")
    if not np.isfinite(values).all():
        raise BadRequest(
            "there is NaN, an infinity, or a number too large for FP32 among the pixel values"
        )
    return values.reshape(shape)


def floats_from_binary(shape: tuple[int, ...], data: memoryview) -> npt.NDArray[np.float32]:
    """Return the numbers of binary data as a flat array. Raises `BadRequest`."""
    size = _FLOAT_BYTES * math.prod(shape)
    if len(data) != size:
        raise BadRequest(f"FP32 of shape {list(shape)} has {size} bytes of data, not {len(data)}")
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def floats_from_json(data: Any) -> npt.NDArray[np.float32]:
    """Return the numbers of a JSON list, infinite where too large. Raises `BadRequest`."""
    try:
        values = np.array(data) if isinstance(data, list) else None
    except ValueError:  # lists of different lengths, or nested too deeply
        values = None
    if values is None or values.dtype.kind not in "fiu":
        raise BadRequest("data of an FP32 input must be a list of numbers, flat or nested evenly")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)

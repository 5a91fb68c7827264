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
_BINARY_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}


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
    if isinstance(data, memoryview):
        values = numbers_from_binary(shape, data, "FP32").astype(np.float32, copy=False)
    else:
        with np.errstate(over="ignore"):
            values = numbers_from_json(shape, data, "FP32").astype(np.float32)
    if not np.isfinite(values).all():
        raise BadRequest(
            "there is NaN, an infinity, or a number too large for FP32 among the pixel values"
        )
    return values.reshape(shape)


def parse_uint8_tensor(shape: tuple[int, ...], data: Any) -> npt.NDArray[np.uint8]:
    """Return a ``UINT8`` tensor of ``shape``, in row-major order; of binary data, a view.

    Args:
        data: a view of the binary data; or the ``data`` of the JSON, a list of numbers, flat or
            nested.

    Raises:
        BadRequest: the data is malformed, of another size, or has numbers that are not whole or not
            from 0 to 255.
    """
    if isinstance(data, memoryview):
        return numbers_from_binary(shape, data, "UINT8").reshape(shape)
    numbers = numbers_from_json(shape, data, "UINT8")
    with np.errstate(invalid="ignore"):
        values = numbers.astype(np.uint8)
    if not np.array_equal(values, numbers):
        raise BadRequest("data of type UINT8 must be whole numbers from 0 to 255")
    return values.reshape(shape)


def numbers_from_binary(
    shape: tuple[int, ...], data: memoryview, datatype: str
) -> npt.NDArray[Any]:
    """Return binary data as a flat view of its numbers. Raises `BadRequest`."""
    dtype = _BINARY_DTYPES[datatype]
    size = dtype.itemsize * math.prod(shape)
    if len(data) != size:
        raise BadRequest(
            f"{datatype} of shape {list(shape)} has {size} bytes of data, not {len(data)}"
        )
    return np.frombuffer(data, dtype)


def numbers_from_json(shape: tuple[int, ...], data: Any, datatype: str) -> npt.NDArray[Any]:
    """Return the numbers of a JSON list, flat or nested as they are. Raises `BadRequest`."""
    try:
        values = np.array(data) if isinstance(data, list) else None
    except ValueError:  # lists of different lengths, or nested too deeply
        values = None
    if values is None or values.dtype.kind not in "fiu":
        raise BadRequest(
            f"data of type {datatype} must be a list of numbers, flat or nested evenly"
        )
    count = math.prod(shape)
    if values.size != count:
        raise BadRequest(f"the shape {list(shape)} has {count} numbers, but data has {values.size}")
    return values

"""The data of one input tensor, in JSON or as bytes, strictly checked."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import BadRequest

_LENGTH = 4  # bytes before each element of a BYTES tensor: its length, little-endian


def read_bytes(shape: tuple[int, ...], data: Any) -> list[bytes]:
    """The elements of a ``BYTES`` tensor of shape ``(n,)``.

    Args:
        data: a view of what follows the JSON; or what stood in it, where base64 (RFC 4648) takes
            the place of bytes, since a JSON string cannot hold all of them.

    Raises:
        BadRequest: they are not that.
    """
    elements = split(data) if isinstance(data, memoryview) else decode_base64(data)
    if len(elements) != shape[0]:
        raise BadRequest(f"the shape says {shape[0]} elements, but there are {len(elements)}")
    return elements


def split(data: memoryview) -> list[bytes]:
    """The elements of a serialised ``BYTES`` tensor. Raises `BadRequest`."""
    elements = []
    at = 0
    while at < len(data):
        begin = at + _LENGTH
        at = begin + int.from_bytes(data[at:begin], "little")
        if begin > len(data) or at > len(data):
            raise BadRequest(
                "a BYTES element is longer than the data; each is 4 bytes of length, then so many"
                " bytes"
            )
        elements.append(bytes(data[begin:at]))
    return elements


def decode_base64(data: Any) -> list[bytes]:
    """The bytes that a JSON list of base64 strings stands for. Raises `BadRequest`."""
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise BadRequest(
            "data of a BYTES input must be a flat list of strings in JSON, each an image in base64"
        )
    try:
        return [base64.b64decode(text, validate=True) for text in data]
    except ValueError:
        raise BadRequest(
            "data of a BYTES input must be base64 in JSON; send images as binary data instead"
        ) from None


def read_floats(shape: tuple[int, ...], data: Any) -> npt.NDArray[np.float32]:
    """An ``FP32`` tensor, finite, in row-major order. Raises `BadRequest`.

    Args:
        data: a view of what follows the JSON, little-endian; or a list of numbers that stood in it,
            flat or nested.
    """
    count = math.prod(shape)
    if isinstance(data, memoryview):
        if len(data) != 4 * count:
            raise BadRequest(
                f"FP32 of shape {list(shape)} has {4 * count} bytes of data, not {len(data)}"
            )
        values = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    else:
        values = from_json(data)
    if values.size != count:
        raise BadRequest(f"the shape {list(shape)} has {count} numbers, but data has {values.size}")
    if not np.isfinite(values).all():
        raise BadRequest(
            "there is NaN, an infinity, or a number too large for FP32 among the pixel values"
        )
    return values.reshape(shape)


def from_json(data: Any) -> npt.NDArray[np.float32]:
    """Numbers of a JSON list. Raises `BadRequest`; what is too large becomes infinite."""
    try:
        values = np.array(data if isinstance(data, list) else [None])
    except ValueError:  # lists of different lengths, or nested too deeply
        values = np.array([None])
    if values.dtype.kind not in "fiu":
        raise BadRequest("data of an FP32 input must be a list of numbers, flat or nested evenly")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)

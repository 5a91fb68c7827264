"""JSON bodies that hold images: ``{"image": "BASE64"}`` or ``{"images": ["BASE64", ...]}``.

Sounds are held in the same way, as ``audio`` or ``audios``, and videos as ``video`` or ``videos``.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from python_multipart.multipart import parse_options_header

from server.api.contract.parameter_values import QUOTED_CHARACTERS
from server.api.pipeline.base64_image import Base64Image
from server.api.pipeline.multipart import MAX_PARTS
from server.errors import BadRequest, InvalidParameter, TooLarge, UnsupportedFormat

MAX_IMAGES = MAX_PARTS  # as in a multipart body

# No image begins like an object. Before it may stand a byte order mark, and white space.
OBJECT_START = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]{0,1000}\{")
_EXPECTED = (
    'send {"image": "BASE64"} or {"images": ["BASE64", ...]}, or audio, audios, video or videos'
)
_ONE = ("image", "audio", "video")
_SEVERAL = ("images", "audios", "videos")
# The parser holds the GIL for a second on 20 MB of empty lists, and for 20 ms on 20 MB of base64.
# `MAX_IMAGES` data URLs have two commas each.
_MAX_MARKS = 1000
_MARKS = (b",", b"[", b"{")


def check_json_type(content_type: str) -> None:
    """Check that a body that begins like an object was sent as JSON. Raises `UnsupportedFormat`."""
    media_type, _ = parse_options_header(content_type)
    if not media_type.endswith((b"/json", b"+json")):
        raise UnsupportedFormat(
            "the body is no image, sound or video; if it is JSON, send it as Content-Type:"
            " application/json"
        )


def parse_json_images(body: bytes) -> tuple[list[Base64Image], bool]:
    """Return the images of a JSON body, at least one, and whether they were sent as a list.

    Raises:
        BadRequest: the body is not JSON.
        InvalidParameter: a member is unknown, repeated, missing, or has a wrong type.
        TooLarge: there are too many images.
    """
    members = parse_object(body, _EXPECTED)
    for name in members:
        if name not in _ONE + _SEVERAL:
            quoted = name[:QUOTED_CHARACTERS]
            raise InvalidParameter(
                f"the JSON has an unknown member {quoted!r}; {_EXPECTED}; parameters stand in the"
                " query",
                parameter=quoted,
            )
    if len(members) != 1:
        raise InvalidParameter(f"the JSON must have one member; {_EXPECTED}")
    ((name, value),) = members.items()
    if name in _ONE:
        return [_base64_image(value, name)], False
    return _base64_images(value, name), True


def parse_object(body: bytes, expected: str) -> dict[str, Any]:
    """Return the members of a JSON object with images that are not null.

    Args:
        expected: what errors say that a client should send.

    Raises:
        BadRequest: the body is no JSON object.
        InvalidParameter: a member is given twice.
        TooLarge: there are too many members or elements.
    """
    if sum(body.count(mark) for mark in _MARKS) > _MAX_MARKS:
        raise TooLarge(
            f"the JSON has too many members or elements; allowed are {MAX_IMAGES} images",
            limit=MAX_IMAGES,
        )
    try:
        members = json.loads(body, object_pairs_hook=partial(_unique_members, expected=expected))
    except (ValueError, RecursionError):
        raise BadRequest(f"the body is not valid JSON; {expected}") from None
    if not isinstance(members, dict):
        raise BadRequest(f"the JSON must be an object; {expected}")
    return {name: value for name, value in members.items() if value is not None}


def _unique_members(pairs: list[tuple[str, Any]], expected: str) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise InvalidParameter(f"a member of the JSON is given twice; {expected}")
    return members


def _base64_images(texts: Any, member: str) -> list[Base64Image]:
    if not isinstance(texts, list) or not texts:
        raise InvalidParameter(
            f"{member} must be a list of base64 strings, at least one", parameter=member
        )
    check_count(len(texts))
    return [_base64_image(text, member) for text in texts]


def check_count(images: int) -> None:
    """Raise `TooLarge` if a request has more ``images`` than `MAX_IMAGES`."""
    if images > MAX_IMAGES:
        raise TooLarge(
            f"there are {images} images; a request may have {MAX_IMAGES}", limit=MAX_IMAGES
        )


def _base64_image(text: Any, member: str) -> Base64Image:
    if not isinstance(text, str):
        what = "a base64 string" if member in _ONE else "a list of base64 strings"
        raise InvalidParameter(f"{member} must be {what}", parameter=member)
    return as_base64_image(text)


def as_base64_image(text: str) -> Base64Image:
    """Return the image of a JSON string.

    A character that is not ASCII becomes "?", which is not base64 either: its image fails alone.
    """
    return Base64Image(text.encode("ascii", "replace"))

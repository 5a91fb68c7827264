"""Images in base64, as clients send them (RFC 4648), also as data URLs (RFC 2397)."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from server.errors import BadImage

_WHITE_SPACE = b" \t\r\n"
_URL_SAFE = b"-_"
_TO_STANDARD = bytes.maketrans(_URL_SAFE, b"+/")
_DATA_URL = b"data:"
_BASE64_PREFIX = re.compile(rb"; *base64 *$", re.IGNORECASE)


@dataclass(frozen=True)
class Base64Image:
    """An image that is decoded from base64 only when its turn comes; ``text`` is the base64."""

    text: bytes

    def __len__(self) -> int:
        return len(self.text)

    def decode(self) -> bytes:
        """Return the encoded image. Raises `BadImage` if the text is not base64."""
        try:
            return decode_base64(self.text)
        except ValueError:
            raise BadImage(
                "the image is not base64, nor a data URL with base64; the server fetches no other"
                " URL"
            ) from None


def decode_base64(text: bytes) -> bytes:
    """Return the bytes of base64 text.

    Both alphabets of RFC 4648 are accepted, white space, missing padding, and a data URL's prefix.

    Raises:
        ValueError: it is not base64.
    """
    payload = text.strip(_WHITE_SPACE)
    if payload[: len(_DATA_URL)].lower() == _DATA_URL:
        prefix, comma, payload = payload.partition(b",")
        if not comma or not _BASE64_PREFIX.search(prefix):
            raise ValueError("the data URL is not base64")
        payload = unquote_to_bytes(payload)  # "+", "/" and "=" are often escaped
    # Most texts need no translation, and these searches are faster than one.
    if any(character in payload for character in _URL_SAFE + _WHITE_SPACE):
        payload = payload.translate(_TO_STANDARD, _WHITE_SPACE)
    missing = -len(payload) % 4
    return binascii.a2b_base64(payload + b"=" * missing, strict_mode=True)

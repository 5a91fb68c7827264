"""ID3v2 tags: titles, lyrics and covers before the sound (id3.org, ID3v2.4 section 3.1)."""

from __future__ import annotations

_HEADER_BYTES = 10
_FOOTER_FLAG = 0x10
_MAX_TAGS = 10


def skip_tags(body: bytes) -> int:
    """Return the offset behind all ID3v2 tags at the start of ``body``; 0 without a tag.

    It may lie behind the end of ``body``.
    """
    offset = 0
    for _ in range(_MAX_TAGS):
        header = body[offset : offset + _HEADER_BYTES]
        if len(header) < _HEADER_BYTES or not header.startswith(b"ID3"):
            break
        size = _synchsafe(header[6:10])
        footer = _HEADER_BYTES if header[5] & _FOOTER_FLAG else 0
        offset += _HEADER_BYTES + size + footer
    return offset


def _synchsafe(digits: bytes) -> int:
    """Return a number of seven bits a byte."""
    number = 0
    for digit in digits:
        number = number << 7 | digit & 0x7F
    return number

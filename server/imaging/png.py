"""Remove the metadata of a PNG file (PNG specification, third edition), and read its orientation.

The orientation is looked for where Pillow finds it: in the chunk ``eXIf``, in a text chunk
``exif``, in ImageMagick's text chunk "Raw profile type exif", and in XMP.
"""

from __future__ import annotations

import zlib

from server.imaging.container import PartCollector, StrippedImage, read_number
from server.imaging.orientation import read_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TRANSPARENCY = b"tRNS"
_KEPT = {b"IHDR", b"PLTE", _TRANSPARENCY, b"IDAT", b"IEND"}
# The end of the file, or the second frame of an animation.
_LAST = {b"IEND", b"fdAT"}
# Length and type before a chunk's data, and the checksum after it.
_HEAD_BYTES = 8
_CHECKSUM_BYTES = 4

_EXIF = b"eXIf"
_TEXT = b"tEXt"
_COMPRESSED_TEXT = b"zTXt"
_INTERNATIONAL_TEXT = b"iTXt"
_TEXTS = {_TEXT, _COMPRESSED_TEXT, _INTERNATIONAL_TEXT}

_MAX_KEYWORD_BYTES = 79  # PNG specification, section 11.3.3.1
_EXIF_KEYWORD = b"exif"
_RAW_EXIF_KEYWORD = b"Raw profile type exif"
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_KEYWORDS = {_EXIF_KEYWORD, _RAW_EXIF_KEYWORD, _XMP_KEYWORD}
# A raw profile begins with an empty line, its name and its length.
_RAW_PROFILE_HEADER_LINES = 3

# Text may inflate to this many bytes, as in Pillow. What follows is cut off.
_MAX_TEXT_BYTES = 1 << 20


def strip_png(body: bytes) -> StrippedImage:
    """Keep the chunks (section 5.3) that the first frame needs.

    Raises:
        TooLarge: there are too many chunks.
    """
    parts = PartCollector(body)
    metadata = _Metadata(body)
    transparency = b""
    start = len(SIGNATURE)
    parts.keep(0, start)
    while start + _HEAD_BYTES <= len(body):
        parts.count()
        data_start = start + _HEAD_BYTES
        data_end = data_start + read_number(body, start, 4)
        end = data_end + _CHECKSUM_BYTES
        chunk_type = body[start + 4 : data_start]
        if chunk_type in _KEPT:
            parts.keep(start, end)
        else:
            metadata.add(chunk_type, data_start, data_end)
        if chunk_type == _TRANSPARENCY:
            transparency = body[data_start:data_end]
        if chunk_type in _LAST:
            break
        start = end
    return StrippedImage(
        "PNG",
        parts.join(),
        metadata.orientation(),
        transparency=transparency,
    )


class _Metadata:
    """Where a PNG keeps EXIF and XMP. Of several chunks of one name the last counts."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._exif = b""
        self._texts: dict[bytes, bytes] = {}

    def add(self, chunk_type: bytes, start: int, end: int) -> None:
        """Note the chunk whose data are the bytes from ``start`` to ``end``."""
        if chunk_type == _EXIF:
            self._exif = self._body[start:end]
        elif chunk_type in _TEXTS:
            beginning = self._body[start : min(end, start + _MAX_KEYWORD_BYTES + 1)]
            keyword = beginning.split(b"\0")[0]
            if keyword not in _KEYWORDS:
                return
            text_start = start + len(keyword) + 1
            text = self._body[text_start:end]
            if keyword != _EXIF_KEYWORD:
                self._texts[keyword] = chunk_type + text
            elif chunk_type == _TEXT:
                self._exif = text

    def orientation(self) -> int:
        """Return the orientation, 1 to 8."""
        exif = self._exif or _parse_raw_profile(self._text(_RAW_EXIF_KEYWORD))
        return read_orientation([exif], self._text(_XMP_KEYWORD))

    def _text(self, keyword: bytes) -> bytes:
        chunk = self._texts.get(keyword, b"")
        type_bytes = len(_TEXT)
        return _read_text(chunk[:type_bytes], chunk[type_bytes:])


def _read_text(chunk_type: bytes, data: bytes) -> bytes:
    """Return the text of a chunk whose ``data`` follow its keyword; nothing of a broken one."""
    if chunk_type == _COMPRESSED_TEXT:
        compression_method = data[:1]
        return _inflate(data[1:]) if compression_method == b"\0" else b""
    if chunk_type != _INTERNATIONAL_TEXT:
        return data
    # Compression flag and method; language and translated keyword, each ended by a zero.
    compression_flag = data[:1]
    parts = data[2:].split(b"\0", 2)
    text = parts[-1]
    return text if compression_flag == b"\0" else _inflate(text)


def _inflate(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _parse_raw_profile(text: bytes) -> bytes:
    """Return the bytes that ImageMagick wrote in hexadecimal digits; nothing of broken text."""
    lines = text.split(b"\n", _RAW_PROFILE_HEADER_LINES)
    if len(lines) <= _RAW_PROFILE_HEADER_LINES:
        return b""
    digits = lines[-1].decode("latin-1")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""

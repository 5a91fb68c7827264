"""A parser that takes the files out of a multipart body as it arrives (RFC 7578; RFC 2046, 5.1)."""

from __future__ import annotations

import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import BadImage, TooLarge

MAX_PARTS = 64
# Of one part. The body's limit bounds all of them together.
MAX_HEADERS = 100
MAX_HEADER_BYTES = 65_536

# A name of a parameter of a header (RFC 2045, section 5.1), and its value, which may be quoted.
# Names of files may hold what RFC 2045 forbids: white space, backslashes, UTF-8.
_PARAMETER = re.compile(rb';\s*([^=;"\s]+)\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^;]*)')
# The types of a file whose part has no file name, as some clients send it.
_FILE_TYPES = (b"image/", b"audio/", b"video/", b"application/octet-stream")


def has_file_name(disposition: bytes | bytearray) -> bool:
    """Whether the value of a ``Content-Disposition`` header has a file name.

    That is ``filename``, ``filename*`` (RFC 6266), or a continuation of it (RFC 2231, section 3).
    """
    names = [name.partition(b"*")[0].lower() for name in _PARAMETER.findall(disposition)]
    return b"filename" in names


class FileParts:
    """The file parts of a multipart body, whatever their field name; other parts are skipped.

    A part is a file if it has a file name, or the content type of an image, of sound, of video or
    of binary data. What stands before the first boundary and after the last is ignored (RFC 2046,
    section 5.1.1).

    Raises:
        BadImage: the content type has no valid boundary.
    """

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise BadImage("the multipart content type has no boundary")
        self._files: list[bytes] = []
        self._part_count = 0
        self._ended = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._is_file = False
        self._chunks: list[bytes] = []  # of the current part
        self._parser = self._create_parser(boundary)
        # The parser knows no preamble, so a part of its own holds what precedes the first boundary.
        self._parser.write(b"--" + boundary + b"\r\n\r\n\r\n")
        self._part_count = 0

    def feed(self, chunk: bytes) -> None:
        """Parse the next chunk of the body.

        Raises:
            BadImage: the body is not multipart.
            TooLarge: it has too many parts.
        """
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise BadImage(
                f"the multipart body is malformed, or a part has more than {MAX_HEADERS} headers or"
                f" one of more than {MAX_HEADER_BYTES} bytes"
            ) from None

    def finish(self) -> list[bytes]:
        """Return the content of each file, in order.

        Raises:
            BadImage: the body is incomplete, or has no file.
        """
        if not self._ended:
            raise BadImage("the multipart body is malformed, or ends before its last boundary")
        if not self._files:
            raise BadImage(
                "the multipart body has no file; send each image as a part with a file name or with"
                " the content type of an image, of sound or of video"
            )
        return self._files

    def _create_parser(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_name,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
                max_header_count=MAX_HEADERS,
                max_header_size=MAX_HEADER_BYTES,
            )
        except FormParserError:
            raise BadImage("the boundary of the multipart body is too long") from None

    def _on_part_begin(self) -> None:
        self._part_count += 1
        if self._part_count > MAX_PARTS:
            raise TooLarge(f"the multipart body has more than {MAX_PARTS} parts", limit=MAX_PARTS)
        self._is_file = False
        self._chunks = []

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        name = self._header_name.lower()
        if name == b"content-disposition" and has_file_name(self._header_value):
            self._is_file = True
        if name == b"content-type" and self._header_value.strip().lower().startswith(_FILE_TYPES):
            self._is_file = True
        self._header_name = bytearray()
        self._header_value = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._chunks.append(data[start:end])

    def _on_part_end(self) -> None:
        if self._is_file:
            self._files.append(b"".join(self._chunks))

    def _on_end(self) -> None:
        self._ended = True

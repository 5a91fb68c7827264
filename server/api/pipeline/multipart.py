"""The files of a multipart body, taken apart while it arrives (RFC 7578, RFC 2046 section 5.1)."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import BadImage, TooLarge

MAX_PARTS = 64


def is_multipart(content_type: str | None) -> bool:
    """Whether a body of ``content_type`` is multipart; everything else is taken as an image."""
    return parse_options_header(content_type)[0].startswith(b"multipart/")


class FileParts:
    """Every file part of a multipart body, whatever its field is called; parts without a file name are passed over.

    Raises:
        BadImage: the content type names no boundary that could be used.
    """

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise BadImage("the multipart content type names no boundary")
        self._files: list[bytes] = []
        self._parts = 0
        self._ended = False
        self._field = bytearray()
        self._value = bytearray()
        self._is_file = False
        self._content: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._extend_field,
                    "on_header_value": self._extend_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._extend_content,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise BadImage("the boundary of the multipart body is too long") from None

    def feed(self, chunk: bytes) -> None:
        """Take in what has arrived.

        Raises:
            BadImage: this is no multipart body.
            TooLarge: it has too many parts.
        """
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise BadImage("the multipart body is malformed") from None

    def finish(self) -> list[bytes]:
        """The content of each file, in order. Raises `BadImage` if the body ended too early, or has no file."""
        if not self._ended:
            raise BadImage("the multipart body is malformed, or ends before its last boundary")
        if not self._files:
            raise BadImage(
                "the multipart body has no file; send each image as a part with a file name"
            )
        return self._files

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLarge(f"the multipart body has more than {MAX_PARTS} parts", limit=MAX_PARTS)
        self._is_file = False
        self._content = []

    def _extend_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._is_file = b"filename" in parse_options_header(self._value.decode("latin-1"))[1]
        self._field = bytearray()
        self._value = bytearray()

    def _extend_content(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._content.append(data[start:end])

    def _end_part(self) -> None:
        if self._is_file:
            self._files.append(b"".join(self._content))

    def _end(self) -> None:
        self._ended = True

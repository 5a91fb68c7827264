"""What the elements of a WebM or Matroska file say before FFmpeg reads them.

RFC 8794 (EBML) and RFC 9559 (Matroska).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import BadMedia, TooLarge

SIGNATURE = b"\x1aE\xdf\xa3"
_DOCUMENT_TYPE = 0x4282
_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
_TRACKS = 0x1654AE6B
_TRACK = 0xAE
_MAX_NUMBER_BYTES = 8
_MAX_ELEMENTS = 300_000
_MAX_TRACKS = 100


@dataclass(frozen=True)
class _Element:
    """Where the content of an element begins and ends.

    Attributes:
        end: None where the file does not say, as one that was written to a pipe.
    """

    id: int
    content: int
    end: int | None


def document_type(body: bytes) -> str | None:
    """Return the ``DocType`` of ``body``, such as ``webm``, or None where it has none."""
    header = _read_element(body, 0) if body.startswith(SIGNATURE) else None
    if header is None or header.end is None:
        return None
    for element in _read_elements(body, header.content, min(header.end, len(body))):
        if element.id == _DOCUMENT_TYPE:
            name = body[element.content : element.end]
            return name.rstrip(b"\0").decode("ascii", "replace")
    return None


def check_elements(body: bytes) -> None:
    """Refuse a file that is shorter than its segment, or whose elements are not in each other.

    FFmpeg looks for the next cluster where elements are damaged, and leaves out what lies between.

    Raises:
        BadMedia: it is truncated or damaged.
        TooLarge: it has too many elements or tracks.
    """
    segments = (found for found in _read_elements(body, 0, len(body)) if found.id == _SEGMENT)
    segment = next(segments, None)
    if segment is None or segment.end is None:
        return
    if segment.end > len(body):
        raise BadMedia("the video is truncated: it ends before its header says")
    total = 0
    for child in _read_elements(body, segment.content, segment.end):
        if child.end is None:
            return
        if child.end > segment.end:
            raise BadMedia("the video is damaged")
        total += 1
        if child.id == _CLUSTER:
            total += _count_children(body, child.content, child.end)
        if child.id == _TRACKS:
            _check_tracks(body, child.content, child.end)
        if total > _MAX_ELEMENTS:
            raise TooLarge(
                f"the video consists of more than {_MAX_ELEMENTS} elements",
                limit=_MAX_ELEMENTS,
            )


def _count_children(body: bytes, start: int, end: int) -> int:
    """Return how many elements there are, which must fill what lies between."""
    position = start
    count = 0
    for child in _read_elements(body, start, end):
        count += 1
        if child.end is None or child.end > end:
            raise BadMedia("the video is damaged")
        position = child.end
    if position != end:
        raise BadMedia("the video is damaged")
    return count


def _check_tracks(body: bytes, start: int, end: int) -> None:
    tracks = sum(child.id == _TRACK for child in _read_elements(body, start, end))
    if tracks > _MAX_TRACKS:
        raise TooLarge(f"the video has more than {_MAX_TRACKS} tracks", limit=_MAX_TRACKS)


def _read_elements(body: bytes, start: int, end: int) -> Iterator[_Element]:
    """Yield the elements between ``start`` and ``end``, up to one that is none, or has no end."""
    position: int | None = start
    while position is not None and position < end:
        element = _read_element(body, position)
        if element is None:
            return
        yield element
        position = element.end


def _read_element(body: bytes, start: int) -> _Element | None:
    """Return the element at ``start``, or None where there is none."""
    id_bytes = _number_bytes(body, start)
    size_start = start + id_bytes
    size_bytes = _number_bytes(body, size_start)
    content = size_start + size_bytes
    if not id_bytes or not size_bytes or content > len(body):
        return None
    identifier = int.from_bytes(body[start:size_start], "big")
    unknown = (1 << 7 * size_bytes) - 1  # all bits are set
    size = int.from_bytes(body[size_start:content], "big") & unknown
    return _Element(identifier, content, None if size == unknown else content + size)


def _number_bytes(body: bytes, start: int) -> int:
    """Return how many bytes the number at ``start`` has, 0 where there is none.

    The first bit that is set says it (RFC 8794, section 4).
    """
    first = body[start] if start < len(body) else 0
    return _MAX_NUMBER_BYTES + 1 - first.bit_length() if first else 0

"""The boxes of a file, and the items in its ``meta`` box (ISO/IEC 14496-12)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import TooLarge
from server.imaging.container import PartCollector, read_number

_BOX_HEAD_BYTES = 8
_LARGE_BOX_HEAD_BYTES = 16
_VERSION_BYTES = 4  # version and flags of a "full" box

# How an item's data are stored (section 8.11.3.3).
_IN_FILE = 0
_IN_DATA_BOX = 1


@dataclass(frozen=True)
class Box:
    """A box: its type, where that is written, and where its content begins and ends."""

    type: bytes
    type_start: int
    content: int
    end: int


@dataclass(frozen=True)
class Item:
    """An item: its type, where that is written, and its data.

    Attributes:
        extents: start and end of each piece of the data in the file.
    """

    type: bytes
    type_start: int
    extents: tuple[tuple[int, int], ...]

    def data(self, body: bytes) -> bytes:
        """Return the item's bytes."""
        return b"".join(body[start:end] for start, end in self.extents)


def read_boxes(body: bytes, parts: PartCollector, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between ``start`` and ``end``.

    Raises:
        IndexError: a box is shorter than its head.
        TooLarge: the body has too many parts.
    """
    while start + _BOX_HEAD_BYTES <= end:
        parts.count()
        size = read_number(body, start, 4)
        content = start + _BOX_HEAD_BYTES
        if size == 1:
            size = read_number(body, content, 8)
            content = start + _LARGE_BOX_HEAD_BYTES
        elif size == 0:
            size = end - start
        box_end = start + size
        if box_end < content:
            raise IndexError
        type_start = start + 4
        box_type = body[type_start : type_start + 4]
        yield Box(box_type, type_start, content, min(box_end, end))
        start = box_end


def skip_version(box: Box) -> int:
    """Return where the content of a box with version and flags begins."""
    return box.content + _VERSION_BYTES


class _Reader:
    """Reads numbers one after another."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body = body
        self.position = start

    def number(self, size: int) -> int:
        start = self.position
        self.position += size
        return read_number(self._body, start, size)


def read_items(body: bytes, parts: PartCollector, meta: Box) -> list[Item]:
    """Return the items that the box ``meta`` describes.

    Raises:
        IndexError: it is truncated.
        TooLarge: the body has too many parts, or an item's pieces overlap.
    """
    boxes = {box.type: box for box in read_boxes(body, parts, skip_version(meta), meta.end)}
    if b"iloc" not in boxes or b"iinf" not in boxes:
        return []
    data_box = boxes.get(b"idat")
    extents = _read_locations(body, parts, boxes[b"iloc"], data_box)
    items = []
    for number, type_start in _read_types(body, parts, boxes[b"iinf"]):
        item_type = body[type_start : type_start + 4]
        item = Item(item_type, type_start, extents.get(number, ()))
        items.append(item)
    return items


def _read_types(body: bytes, parts: PartCollector, box: Box) -> Iterator[tuple[int, int]]:
    """Yield each item's number, and where its type is written (section 8.11.6)."""
    count_bytes = 2 if body[box.content] == 0 else 4
    start = skip_version(box) + count_bytes
    for entry in read_boxes(body, parts, start, box.end):
        version = body[entry.content]
        number_bytes = 2 if version <= 2 else 4
        number_start = skip_version(entry)
        number = read_number(body, number_start, number_bytes)
        protection_bytes = 2
        yield number, number_start + number_bytes + protection_bytes


def _read_locations(
    body: bytes,
    parts: PartCollector,
    box: Box,
    data_box: Box | None,
) -> dict[int, tuple[tuple[int, int], ...]]:
    """Return start and end of each piece of each item (section 8.11.3)."""
    reader = _Reader(body, skip_version(box))
    layout = _Layout(body[box.content], reader.number(1), reader.number(1))
    locations = {}
    for _ in range(reader.number(layout.number_bytes)):
        number = reader.number(layout.number_bytes)
        method = reader.number(2) & 15 if layout.version else _IN_FILE
        reader.number(2)  # which file
        base = reader.number(layout.base_bytes)
        if method == _IN_DATA_BOX and data_box:
            base += data_box.content
        extents = []
        for _ in range(reader.number(2)):
            parts.count()
            reader.number(layout.index_bytes)
            start = base + reader.number(layout.offset_bytes)
            length = reader.number(layout.length_bytes) or len(body) - start
            extents.append((start, start + length))
        _check_pieces(extents, len(body))
        locations[number] = tuple(extents)
    return locations


@dataclass(frozen=True)
class _Layout:
    """How many bytes the numbers of an ``iloc`` box have, from its version and two bytes."""

    version: int
    sizes: int
    base_sizes: int

    @property
    def number_bytes(self) -> int:
        return 4 if self.version > 1 else 2

    @property
    def offset_bytes(self) -> int:
        return self.sizes >> 4

    @property
    def length_bytes(self) -> int:
        return self.sizes & 15

    @property
    def base_bytes(self) -> int:
        return self.base_sizes >> 4

    @property
    def index_bytes(self) -> int:
        return self.base_sizes & 15 if self.version else 0


def _check_pieces(extents: list[tuple[int, int]], file_bytes: int) -> None:
    """Refuse pieces beyond the end, and those that overlap: joining them takes memory."""
    if any(end > file_bytes for _, end in extents):
        raise IndexError
    if sum(end - start for start, end in extents) > file_bytes:
        raise TooLarge("the image consists of overlapping parts")

"""Limit what an AVIF file makes its decoder do (AV1 Image File Format, version 1.1.0).

The decoder allocates what the AV1 data declare, whatever size the container declares. Animations
and EXIF are hidden from it by other box and item types of the same length: it decodes the primary
picture alone, and Pillow, which reads all tags of EXIF, sees none.
"""

from __future__ import annotations

from server.errors import BadImage, TooLarge
from server.imaging.av1 import coded_sizes
from server.imaging.container import PartCollector, StrippedImage, read_number
from server.imaging.isobmff import Box, Item, read_boxes, read_items, skip_version
from server.imaging.orientation import read_exif_tag

_STILL = b"avif"
_SEQUENCE = b"avis"
_BRANDS = slice(8, 12)
_BRAND_BYTES = 4
_MINOR_VERSION_BYTES = 4
_MAX_BRANDS = 100

_UNUSED_BOX = b"free"
_UNUSED_ITEM = b"none"
_PICTURE_ITEM = b"av01"
_GRID_ITEM = b"grid"
_GRID_SIDES = 4  # after version, flags, rows and columns
_EXIF_ITEM = b"Exif"
_XMP_ITEM = b"mime"
_EXIF_OFFSET_BYTES = 4  # where the TIFF header begins, before the data (ISO/IEC 23008-12, A.2.1)

# Layers, hidden frames: each takes as long to decode as a whole picture.
_MAX_FRAMES_PER_ITEM = 8
# Bytes that all pictures may have together, as a share of the file.
_MAX_SHARE_READ = 2


def read_brands(body: bytes) -> set[bytes]:
    """Return the brands of a file that begins with a box ``ftyp``, else nothing."""
    if body[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(body[:4], "big"), len(body), _BRAND_BYTES * _MAX_BRANDS)
    starts = range(_BRANDS.start, end - _BRAND_BYTES + 1, _BRAND_BYTES)
    return {body[start : start + _BRAND_BYTES] for start in starts}


def is_avif(body: bytes) -> bool:
    """Return whether ``body`` has one of the brands of AVIF."""
    return not read_brands(body).isdisjoint({_STILL, _SEQUENCE})


def open_avif(body: bytes) -> StrippedImage:
    """Return ``body`` with only its primary picture, and all sizes that its decoder allocates.

    Raises:
        BadImage: there is no such picture, as in some animations.
        IndexError: it is truncated.
        TooLarge: it consists of too many parts or frames.
    """
    parts = PartCollector(body)
    patched = bytearray(body)
    patched[_BRANDS] = _STILL
    canvases: list[tuple[int, int]] = []
    for box in read_boxes(body, parts, 0, len(body)):
        if box.type == b"ftyp":
            _hide_sequence(patched, box)
        elif box.type == b"moov":
            patched[box.type_start : box.type_start + 4] = _UNUSED_BOX
        elif box.type == b"meta":
            items = read_items(body, parts, box)
            _hide_metadata(body, patched, items)
            canvases += _declared_sizes(body, parts, box)
            canvases += _grid_sizes(body, items)
            canvases += _frame_sizes(body, parts, items)
    if not canvases:
        raise BadImage("the AVIF file has no still picture")
    return StrippedImage("AVIF", bytes(patched), orientation=None, canvases=tuple(canvases))


def _hide_sequence(patched: bytearray, ftyp: Box) -> None:
    start = ftyp.content + _BRAND_BYTES + _MINOR_VERSION_BYTES
    patched[start : ftyp.end] = patched[start : ftyp.end].replace(_SEQUENCE, _STILL)


def _hide_metadata(body: bytes, patched: bytearray, items: list[Item]) -> None:
    """Hide EXIF, and where its orientation overrules XMP, XMP as well."""
    exif = [item for item in items if item.type == _EXIF_ITEM]
    hidden = list(exif)
    if any(_has_orientation(item.data(body)) for item in exif):
        hidden += [item for item in items if item.type == _XMP_ITEM]
    for item in hidden:
        patched[item.type_start : item.type_start + 4] = _UNUSED_ITEM


def _has_orientation(exif: bytes) -> bool:
    start = _EXIF_OFFSET_BYTES + int.from_bytes(exif[:_EXIF_OFFSET_BYTES], "big")
    return read_exif_tag(exif[start:]) is not None


def _declared_sizes(body: bytes, parts: PartCollector, meta: Box) -> list[tuple[int, int]]:
    """Return the sizes of all pictures in ``meta``, and of what is assembled from them."""
    sizes = []
    boxes = [meta]
    for path in (b"iprp", b"ipco", b"ispe"):
        boxes = [child for box in boxes for child in _children(body, parts, box, path)]
    for box in boxes:
        start = skip_version(box)
        width = read_number(body, start, 4)
        height = read_number(body, start + 4, 4)
        sizes.append(_checked(width, height))
    return sizes


def _grid_sizes(body: bytes, items: list[Item]) -> list[tuple[int, int]]:
    """Return the sizes of pictures that are assembled from others (ISO/IEC 23008-12, 6.6.2.3)."""
    sizes = []
    for item in items:
        if item.type == _GRID_ITEM:
            data = item.data(body)
            has_long_sides = read_number(data, 1, 1) & 1
            side_bytes = 4 if has_long_sides else 2
            width = read_number(data, _GRID_SIDES, side_bytes)
            height = read_number(data, _GRID_SIDES + side_bytes, side_bytes)
            sizes.append(_checked(width, height))
    return sizes


def _checked(width: int, height: int) -> tuple[int, int]:
    if not width or not height:
        raise BadImage("the image is corrupt or truncated")
    return width, height


def _children(body: bytes, parts: PartCollector, box: Box, name: bytes) -> list[Box]:
    start = skip_version(box) if box.type == b"meta" else box.content
    return [child for child in read_boxes(body, parts, start, box.end) if child.type == name]


def _frame_sizes(body: bytes, parts: PartCollector, items: list[Item]) -> list[tuple[int, int]]:
    """Return the size of each frame of each picture."""
    sizes = []
    # Pictures of one colour, as parts of a larger one, may share their data.
    known: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
    bytes_left = _MAX_SHARE_READ * len(body)
    for item in items:
        if item.type != _PICTURE_ITEM:
            continue
        if item.extents not in known:
            data = item.data(body)
            bytes_left -= len(data)
            if bytes_left < 0:
                raise TooLarge("the image consists of overlapping parts")
            known[item.extents] = coded_sizes(data, parts)
        frames = known[item.extents]
        if len(frames) > _MAX_FRAMES_PER_ITEM:
            raise TooLarge(
                f"a picture has more than {_MAX_FRAMES_PER_ITEM} frames",
                limit=_MAX_FRAMES_PER_ITEM,
            )
        sizes += frames
    return sizes

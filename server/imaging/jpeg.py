"""Remove the metadata of a JPEG file (ITU-T T.81, annex B), and limit its scans."""

from __future__ import annotations

import re

from server.errors import BadImage, TooLarge
from server.imaging.container import PartCollector, StrippedImage, read_number
from server.imaging.orientation import read_orientation

# Each scan takes as long to decode as a whole image, and can be a few bytes long. A progressive
# JPEG has about 10.
_MAX_SCANS = 100

# The last of several fill bytes starts a marker. With a "+" the search would be quadratic.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# Stuffed zeros and restart markers do not end a scan.
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

_SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_APP13 = 0xED
_APP15 = 0xEF
_COMMENT = 0xFE
# All application data but JFIF's (APP0) and Adobe's (APP14), which describe colours.
_REMOVED = {*range(_APP1, _APP13 + 1), _APP15, _COMMENT}

# Offsets from a marker's second byte.
_LENGTH = 1
_DATA = 3
_SCAN_COMPONENTS = 3
_FRAME_COMPONENTS = 8

_EXIF = b"Exif\0\0"
_SIGNATURE_BYTES = 2


def strip_jpeg(body: bytes) -> StrippedImage:
    """Return ``body`` without the metadata that precedes its first scan.

    Raises:
        BadImage: there is no scan.
        IndexError: the body is truncated.
        TooLarge: it has too many segments or scans.
    """
    parts = PartCollector(body)
    orientation = 1
    frame_components = None
    end = _SIGNATURE_BYTES
    parts.keep(0, end)
    while match := _MARKER.search(body, end):
        parts.count()
        marker = match.end() - 1
        code = body[marker]
        if code == _START_OF_SCAN:
            _check_scans(body, marker, frame_components)
            parts.keep(marker - 1)
            return StrippedImage("JPEG", parts.join(), orientation)
        if code == _END_OF_IMAGE:
            break
        end = _segment_end(body, marker)
        if code in _SEQUENTIAL_FRAMES:
            frame_components = body[marker + _FRAME_COMPONENTS]
        if code not in _REMOVED:
            parts.keep(marker - 1, end)
        elif code == _APP1 and body.startswith(_EXIF, marker + _DATA):
            exif_start = marker + _DATA + len(_EXIF)
            orientation = read_orientation(body[exif_start:end])
    raise BadImage("the image is corrupt or truncated")


def _segment_end(body: bytes, marker: int) -> int:
    start = marker + _LENGTH
    return start + read_number(body, start, 2)


def _check_scans(body: bytes, marker: int, frame_components: int | None) -> None:
    """Raise `TooLarge` if the image, whose first scan starts at ``marker``, has too many scans.

    Args:
        frame_components: number of components of a sequential frame, else None.
    """
    # A decoder stops after the first scan if that scan has all components of a sequential frame.
    if body[marker + _SCAN_COMPONENTS] == frame_components:
        return
    # Counting bytes is fast, and an upper bound: segments and data after the image may contain the
    # same bytes.
    if body.count(b"\xff\xda", marker) >= _MAX_SCANS:
        _count_scans(body, marker)


def _count_scans(body: bytes, marker: int) -> None:
    """Raise `TooLarge` if more than `_MAX_SCANS` scans precede the end of the image."""
    parts = PartCollector(body)
    scans = 0
    while body[marker] != _END_OF_IMAGE:
        parts.count()
        scans += body[marker] == _START_OF_SCAN
        if scans > _MAX_SCANS:
            raise TooLarge(f"the image has more than {_MAX_SCANS} scans", limit=_MAX_SCANS)
        header_end = _segment_end(body, marker)
        match = _MARKER_AFTER_SCAN.search(body, header_end)
        if not match:
            break
        marker = match.end() - 1

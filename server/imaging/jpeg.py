"""Remove the metadata of a JPEG file (ITU-T T.81, annex B), and limit its scans."""

from __future__ import annotations

import re

from server.errors import BadImage, TooLarge
from server.imaging.container import Frame, PartCollector, StrippedImage, read_number
from server.imaging.orientation import UPRIGHT, read_orientation

# Each scan takes as long to decode as a whole image, and can be a few bytes long. A progressive
# JPEG has about 10.
_MAX_SCANS = 100

# The last of several fill bytes starts a marker. With a "+" the search would be quadratic.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# Stuffed zeros and restart markers do not end a scan.
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
# TEM and the restart markers have no length (section B.1.1.3). Between segments, where they do not
# belong, decoders pass over them.
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}

_SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_APP13 = 0xED
_APP15 = 0xEF
_COMMENT = 0xFE
_APP0 = 0xE0
# Baseline and progressive, both with Huffman's codes.
_USUAL_FRAMES = (0xC0, 0xC2)
# Quantisation tables, Huffman tables, restart interval.
_TABLES = (0xDB, 0xC4, 0xDD)
# All application data but JFIF's (APP0) and Adobe's (APP14), which describe colours.
_REMOVED = {*range(_APP1, _APP13 + 1), _APP15, _COMMENT}

# Offsets from a marker's second byte.
_LENGTH = 1
_LENGTH_BYTES = 2
_DATA = 3
_SCAN_COMPONENTS = 3
_FRAME_PRECISION = 3
_FRAME_HEIGHT = 4
_FRAME_WIDTH = 6
_FRAME_COMPONENTS = 8
_SIDE_BYTES = 2

_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# A complete JFIF segment (T.871, section 10.1): its length, and how its data begin. What has one is
# grey or YCbCr.
_JFIF = b"JFIF\0"
_JFIF_BYTES = 16
_SIGNATURE_BYTES = 2


def strip_jpeg(body: bytes) -> StrippedImage:
    """Return ``body`` without the metadata that precedes its first scan.

    Raises:
        BadImage: there is no scan.
        IndexError: the body is truncated.
        TooLarge: it has too many segments or scans.
    """
    parts = PartCollector(body)
    metadata = _Metadata()
    frame_components = None
    usual = _Usual()
    end = _SIGNATURE_BYTES
    parts.keep(0, end)
    while match := _MARKER.search(body, end):
        parts.count()
        marker = match.end() - 1
        code = body[marker]
        if code == _START_OF_SCAN:
            _check_scans(body, marker, frame_components)
            parts.keep(marker - 1)
            return StrippedImage("JPEG", parts.join(), metadata.orientation(), frame=usual.frame())
        if code == _END_OF_IMAGE:
            break
        if code in _WITHOUT_LENGTH:
            end = match.end()
            continue
        end = _segment_end(body, marker)
        if code in _SEQUENTIAL_FRAMES:
            frame_components = body[marker + _FRAME_COMPONENTS]
        if code not in _REMOVED:
            parts.keep(marker - 1, end)
            usual.add(code, body, marker, end)
        elif code == _APP1:
            metadata.add(body[marker + _DATA : end])
    raise BadImage("the image is corrupt or truncated")


class _Usual:
    """Finds out whether the segments of a JPEG are those that nearly all have, and no others."""

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._jfif = 0
        self._others = 0

    def add(self, code: int, body: bytes, marker: int, end: int) -> None:
        """Add the segment of type ``code`` whose second byte is at ``marker``."""
        if code in _TABLES:
            return
        if code in _USUAL_FRAMES and body[marker + _FRAME_PRECISION] == 8:
            width = read_number(body, marker + _FRAME_WIDTH, _SIDE_BYTES)
            height = read_number(body, marker + _FRAME_HEIGHT, _SIDE_BYTES)
            self._frames.append(Frame(width, height, body[marker + _FRAME_COMPONENTS]))
        elif code == _APP0 and body.startswith(_JFIF, marker + _DATA):
            self._jfif += end - marker - _LENGTH >= _JFIF_BYTES
        else:
            self._others += 1

    def frame(self) -> Frame | None:
        """Return the only frame, if the file is of the usual kind."""
        if self._others or self._jfif != 1 or len(self._frames) != 1:
            return None
        frame = self._frames[0]
        return frame if frame.components in (1, 3) and frame.width and frame.height else None


class _Metadata:
    """The EXIF and XMP segments of a JPEG."""

    def __init__(self) -> None:
        self._exif: list[bytes] = []
        self._xmp = b""

    def add(self, data: bytes) -> None:
        """Add the data of an APP1 segment."""
        if data.startswith(_EXIF):
            self._exif.append(data.removeprefix(_EXIF))
        elif data.startswith(_XMP):
            self._xmp = data

    def orientation(self) -> int:
        """Return the orientation, 1 to 8.

        EXIF that is larger than a segment goes on in the next, so the first directory may point
        into what follows.
        """
        if not self._exif and not self._xmp:
            return UPRIGHT
        directories = self._exif
        if len(directories) > 1:
            directories = [b"".join(directories), *directories[1:]]
        return read_orientation(directories, self._xmp)


def _segment_end(body: bytes, marker: int) -> int:
    start = marker + _LENGTH
    length = read_number(body, start, _LENGTH_BYTES)
    # A shorter length than its own is wrong; decoders pass over the length alone.
    return start + max(length, _LENGTH_BYTES)


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

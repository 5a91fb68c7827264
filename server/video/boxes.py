"""What the boxes of an MP4 or a MOV say before FFmpeg reads them (ISO/IEC 14496-12)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import BadMedia, TooLarge

_HEAD_BYTES = 8
_LARGE_HEAD_BYTES = 16
_TO_THE_END = 0
_LARGE = 1
# Those without which there is no video. Behind them a file may end with anything.
_NEEDED = {b"moov", b"moof", b"mdat"}
_PATH_TO_SAMPLES = (b"mdia", b"minf", b"stbl")
_MAX_BOXES = 100_000
_MAX_TRACKS = 100


@dataclass(frozen=True)
class _Box:
    """A box: where its content begins and ends; the end may lie behind the file's."""

    name: bytes
    content: int
    end: int


def check_boxes(body: bytes) -> None:
    """Refuse a file that ends before one of its boxes does, or whose index takes much memory.

    Raises:
        BadMedia: it is truncated, or its samples are larger than it is.
        TooLarge: it has too many boxes or tracks.
    """
    for count, box in enumerate(_read_boxes(body, 0, len(body))):
        if count == _MAX_BOXES:
            raise TooLarge(f"the video consists of more than {_MAX_BOXES} boxes", limit=_MAX_BOXES)
        if box.end > len(body) and box.name in _NEEDED:
            raise BadMedia("the video is truncated: it ends before its header says")
        if box.name == b"moov":
            _check_tracks(body, box)


def _check_tracks(body: bytes, index: _Box) -> None:
    tracks = 0
    for track in _read_boxes(body, index.content, index.end):
        if track.name != b"trak":
            continue
        tracks += 1
        if tracks > _MAX_TRACKS:
            raise TooLarge(f"the video has more than {_MAX_TRACKS} tracks", limit=_MAX_TRACKS)
        _check_sample_sizes(body, track)


def _check_sample_sizes(body: bytes, track: _Box) -> None:
    """Refuse samples of one size (section 8.7.3) that are larger than the file.

    FFmpeg makes an entry of an index for each: billions, if twenty bytes say so.
    """
    parent = track
    for name in (*_PATH_TO_SAMPLES, b"stsz"):
        children = _read_boxes(body, parent.content, parent.end)
        found = next((box for box in children if box.name == name), None)
        if found is None:
            return
        parent = found
    size_start = parent.content + 4
    count_start = size_start + 4
    size = int.from_bytes(body[size_start:count_start], "big")
    count = int.from_bytes(body[count_start : count_start + 4], "big")
    if size * count > len(body):
        raise BadMedia("the video is corrupt: its frames are larger than the file")


def _read_boxes(body: bytes, start: int, end: int) -> Iterator[_Box]:
    """Yield the boxes between ``start`` and ``end`` (section 4.2), up to one that is none."""
    while start + _HEAD_BYTES <= min(end, len(body)):
        head = body[start : start + _LARGE_HEAD_BYTES]
        size = int.from_bytes(head[:4], "big")
        head_bytes = _HEAD_BYTES
        if size == _TO_THE_END:
            size = end - start
        elif size == _LARGE:
            size = int.from_bytes(head[_HEAD_BYTES:], "big")
            head_bytes = _LARGE_HEAD_BYTES
        if size < head_bytes:
            return
        yield _Box(head[4:8], start + head_bytes, start + size)
        start += size

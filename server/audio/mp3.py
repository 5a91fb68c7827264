"""MP3: its frames, and how many there are (ISO/IEC 11172-3, section 2.4.1; 13818-3).

libsndfile believes the number of frames in a Xing frame. Without one it estimates the number from
the first frame's bit rate, and stops there: half of a sound of variable bit rate may be lost. So
the frames are counted here, and a Xing frame is put before them that has their number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from server.audio.stream import Stream
from server.errors import BadMedia, TooLarge

_HEADER_BYTES = 4
_SYNC = 0xFFE00000
_SYNC_BYTE = 0xFF
_LAYER_3 = 1
_MONO = 3
_MPEG_1 = 3
# By the two bits of the version; 1 is reserved.
_SAMPLE_RATES = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}
# In kbit/s, by the four bits of the rate from 1 to 14: 0 is "free", and 15 is forbidden.
_MPEG_1_RATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2_RATES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_HIGHEST_RATE = 14
_RATE_MASK = 0xF << 12
_PADDING_FLAG = 1 << 9
_NO_CHECKSUM_FLAG = 1 << 16

_XING_NAMES = (b"Xing", b"Info")
_HAS_COUNT = 1
# About 40 minutes at 44.1 kHz.
_MAX_FRAMES = 100_000
_MAX_HOLE = 10_000


@dataclass(frozen=True)
class _Frame:
    """What the header of one frame says.

    Attributes:
        header: its 32 bits.
        length: of the frame, in bytes.
        kind: what all frames of a stream have in common: version and sample rate.
        side_bytes: of the side information, behind the header.
    """

    header: int
    length: int
    kind: tuple[int, int]
    side_bytes: int


def is_mp3(body: bytes, start: int) -> bool:
    """Whether two frames that belong together follow ``start``, or the only one.

    One frame alone is no proof: its header has 11 bits that are always the same.
    """
    first = _read_frame(body, start)
    if first is None:
        return False
    behind = start + first.length
    if len(body) < behind + _HEADER_BYTES:
        return True
    second = _read_frame(body, behind)
    return second is not None and second.kind == first.kind


def open_mp3(body: bytes, start: int) -> Stream:
    """Return the frames of ``body`` from ``start`` on, with a Xing frame before them.

    Raises:
        BadMedia: there are no frames, or the last one is truncated.
        TooLarge: there are too many.
    """
    first = _read_frame(body, start)
    if first is None:
        raise BadMedia("the MP3 has no frames")
    # It lies where the sound of the frame would begin, behind the side information.
    xing = start + _HEADER_BYTES + first.side_bytes
    if body.startswith(_XING_NAMES, xing):
        if _says_count(body, xing):
            return Stream("MP3", body[start:])
        start += first.length  # it has no sound
    count = _count_frames(body, start, first)
    frames = memoryview(body)[start:]
    return Stream("MP3", b"".join([_xing_frame(first, count), frames]))


def _says_count(body: bytes, xing: int) -> bool:
    """Return whether the Xing data at offset ``xing`` has the number of frames."""
    fields = body[xing + 4 : xing + 12]
    if len(fields) < 8:
        return False
    flags, count = struct.unpack(">II", fields)
    return bool(flags & _HAS_COUNT and count)


def _count_frames(body: bytes, start: int, first: _Frame) -> int:
    """Return the number of frames; tags and other data behind the last one do not count.

    Raises:
        BadMedia: the last one is truncated, or there are more behind something that is no frame.
        TooLarge: there are too many.
    """
    offset = start
    for count in range(_MAX_FRAMES):
        frame = _read_frame(body, offset)
        if frame is None or frame.kind != first.kind:
            _check_end(body, offset, first)
            return count
        offset += frame.length
        if offset > len(body):
            raise BadMedia("the MP3 is truncated: its last frame is incomplete")
    raise TooLarge(f"the MP3 has more than {_MAX_FRAMES} frames")


def _check_end(body: bytes, end: int, first: _Frame) -> None:
    """Raise `BadMedia` if two frames like ``first`` follow soon after ``end``, where none is."""
    for offset in range(end, min(end + _MAX_HOLE, len(body))):
        if body[offset] != _SYNC_BYTE:
            continue
        frame = _read_frame(body, offset)
        if frame is None or frame.kind != first.kind:
            continue
        second = _read_frame(body, offset + frame.length)
        if second is not None and second.kind == first.kind:
            raise BadMedia("the MP3 is damaged: between its frames lies something else")


def _xing_frame(first: _Frame, count: int) -> bytes:
    """Return a frame like ``first`` that has no sound, but the number of frames that follow."""
    header = first.header & ~_RATE_MASK & ~_PADDING_FLAG
    header |= _HIGHEST_RATE << 12 | _NO_CHECKSUM_FLAG
    words = struct.pack(">I", header)
    frame = _read_frame(words, 0)
    assert frame is not None
    content = b"Xing" + struct.pack(">II", _HAS_COUNT, count)
    return (words + bytes(frame.side_bytes) + content).ljust(frame.length, b"\0")


def _read_frame(body: bytes, offset: int) -> _Frame | None:
    """Return the frame whose header is at ``offset``; None where there is none of layer III."""
    header = int.from_bytes(body[offset : offset + _HEADER_BYTES], "big")
    if header & _SYNC != _SYNC or header >> 17 & 3 != _LAYER_3:
        return None
    version = header >> 19 & 3
    rate = header >> 12 & 15
    rate_of_samples = header >> 10 & 3
    if version not in _SAMPLE_RATES or not 1 <= rate <= _HIGHEST_RATE or rate_of_samples == 3:
        return None
    is_mono = header >> 6 & 3 == _MONO
    sample_rate = _SAMPLE_RATES[version][rate_of_samples]
    if version == _MPEG_1:
        samples = 1152
        bits_per_second = 1000 * _MPEG_1_RATES[rate - 1]
        side_bytes = 17 if is_mono else 32
    else:
        samples = 576
        bits_per_second = 1000 * _MPEG_2_RATES[rate - 1]
        side_bytes = 9 if is_mono else 17
    padding = 1 if header & _PADDING_FLAG else 0
    length = samples // 8 * bits_per_second // sample_rate + padding
    return _Frame(header, length, (version, sample_rate), side_bytes)

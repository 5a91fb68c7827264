"""WAV (RIFF/WAVE): its codec is on an allow-list, and only a plain file reaches the decoder.

libsndfile 1.2.2 can be attacked by a file of IMA ADPCM when it opens it (CVE-2026-37555). A list of
allowed codecs helps only if both readers find the same codec in a file, so the decoder gets a new
header, written from what was read here, and the samples: never the original.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from server.audio.counts import check_header
from server.audio.stream import Stream
from server.errors import BadMedia, TooLarge, UnsupportedFormat
from server.media.limits import AudioLimits

_PCM = 1
_FLOAT = 3
_A_LAW = 6
_MU_LAW = 7
_EXTENSIBLE = 0xFFFE
# Bytes of one sample, by codec.
_WIDTHS = {
    _PCM: (1, 2, 3, 4),
    _FLOAT: (4, 8),
    _A_LAW: (1,),
    _MU_LAW: (1,),
}
_ALLOWED = "allowed are PCM, IEEE float, A-law and mu-law"
_FOREIGN = {
    2: "Microsoft ADPCM",
    0x11: "IMA ADPCM",
    0x31: "GSM 6.10",
    0x40: "G.721 ADPCM",
    0x50: "MPEG audio",
    0x55: "MP3",
    0xFF: "AAC",
    0x161: "Windows Media Audio",
    0x2000: "AC-3",
}
# What follows the codec's number in the subformat of an extensible header.
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")

_RIFF_HEADER = 12
_CHUNK_HEADER = 8
_FORMAT = struct.Struct("<HHIIHH")
_EXTENSIBLE_BYTES = 40
_SUBFORMAT = slice(24, 40)
_MAX_CHUNKS = 1000
# Programs that write into a pipe do not know the size. They write the largest one, or one near it.
_UNKNOWN_SIZE = 0x7FFF_F000


@dataclass(frozen=True)
class _Format:
    """A ``fmt`` chunk; ``width`` is that of one sample in bytes."""

    codec: int
    channels: int
    sample_rate: int
    width: int


def is_wav(body: bytes) -> bool:
    """Whether ``body`` has the signature of a WAV."""
    return body.startswith(b"RIFF") and body[8:12] == b"WAVE"


def open_wav(body: bytes, limits: AudioLimits) -> Stream:
    """Return the samples of ``body`` behind a plain header.

    Raises:
        UnsupportedFormat: its codec is not on the allow-list.
        BadMedia: it has no format or samples, a format that contradicts itself, or fewer samples
            than it says.
        TooLarge: it has too many channels or chunks, or too high a sample rate.
    """
    found: _Format | None = None
    offset = _RIFF_HEADER
    for _ in range(_MAX_CHUNKS):
        if len(body) < offset + _CHUNK_HEADER:
            raise BadMedia("the WAV ends before its samples")
        name, size = struct.unpack_from("<4sI", body, offset)
        offset += _CHUNK_HEADER
        if name == b"fmt ":
            found = _read_format(body[offset : offset + size])
            check_header(found.sample_rate, found.channels, limits)
        if name == b"data":
            if found is None:
                raise BadMedia("the WAV does not say which format its samples have")
            return Stream("WAV", _write(found, _samples(body, offset, size)))
        offset += size + size % 2
    raise TooLarge(f"the WAV has more than {_MAX_CHUNKS} chunks before its samples")


def _samples(body: bytes, start: int, size: int) -> memoryview:
    available = memoryview(body)[start:]
    if len(available) < size < _UNKNOWN_SIZE:
        raise BadMedia("the WAV is truncated: it has fewer samples than its header says")
    return available[:size]


def _read_format(chunk: bytes) -> _Format:
    if len(chunk) < _FORMAT.size:
        raise BadMedia("the WAV's format is truncated")
    codec, channels, sample_rate, _, frame_bytes, bits = _FORMAT.unpack_from(chunk)
    if codec == _EXTENSIBLE:
        codec = _read_subformat(chunk)
    if codec not in _WIDTHS:
        name = _FOREIGN.get(codec, f"of codec 0x{codec:X}")
        raise UnsupportedFormat(f"the WAV is {name}, which is not supported; {_ALLOWED}")
    if channels == 0:
        raise BadMedia("the WAV has no channels")
    width, rest = divmod(frame_bytes, channels)
    # A sample may have fewer bits than its bytes hold: 12 in 2 bytes, or 24 in 4.
    if rest or width not in _WIDTHS[codec] or not 0 < bits <= 8 * width:
        raise BadMedia("the WAV's header contradicts itself: bits, channels and bytes do not fit")
    return _Format(codec, channels, sample_rate, width)


def _read_subformat(chunk: bytes) -> int:
    if len(chunk) < _EXTENSIBLE_BYTES:
        raise BadMedia("the WAV's format is truncated")
    subformat = chunk[_SUBFORMAT]
    if subformat[2:] != _GUID_TAIL:
        raise UnsupportedFormat(f"the WAV has an unknown codec; {_ALLOWED}")
    return int.from_bytes(subformat[:2], "little")


def _write(found: _Format, samples: memoryview) -> bytes:
    """Return a WAV of ``samples`` whose header has the format and nothing else."""
    frame_bytes = found.channels * found.width
    bytes_per_second = min(found.sample_rate * frame_bytes, 2**32 - 1)
    format_chunk = _FORMAT.pack(
        found.codec,
        found.channels,
        found.sample_rate,
        bytes_per_second,
        frame_bytes,
        8 * found.width,
    )
    header = b"WAVEfmt " + struct.pack("<I", len(format_chunk)) + format_chunk
    header += b"data" + struct.pack("<I", len(samples))
    padding = bytes(len(samples) % 2)
    size = len(header) + len(samples) + len(padding)
    return b"".join([b"RIFF", struct.pack("<I", size), header, samples, padding])

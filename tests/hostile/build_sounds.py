"""Building blocks of sound files, most of which no encoder writes."""

from __future__ import annotations

import io
import itertools
import re
import struct
from functools import cache

import numpy as np
import soundfile

PCM = 1
FLOAT = 3
OGG_FIRST = 2
OGG_LAST = 4
_OGG_POLYNOMIAL = 0x04C11DB7
_MAX_SEGMENTS = 255
# One packet of 60 ms that has no data: SILK, narrow band, mono, one frame.
_EMPTY_OPUS_PACKET = b"\x18"
_OPUS_PACKET_SAMPLES = 2880


def noise(seconds: float, sample_rate: int = 16_000, channels: int = 1, seed: int = 0):
    """Quiet noise, float32 ``(n, channels)``."""
    generator = np.random.default_rng(seed)
    shape = (round(seconds * sample_rate), channels)
    return (0.1 * generator.standard_normal(shape)).astype(np.float32)


def encode(samples: np.ndarray, sample_rate: int, form: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format=form, subtype=subtype)
    return file.getvalue()


def riff(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def riff_chunk(name: bytes, data: bytes, size: int | None = None) -> bytes:
    """One chunk, which says that it has ``size`` bytes."""
    declared = len(data) if size is None else size
    return name + struct.pack("<I", declared) + data + bytes(len(data) % 2)


def wav_format(
    codec: int = PCM,
    channels: int = 1,
    sample_rate: int = 16_000,
    bits: int = 16,
    frame_bytes: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """A ``fmt`` chunk."""
    width = channels * bits // 8 if frame_bytes is None else frame_bytes
    second = min(sample_rate * width, 2**32 - 1)
    fields = struct.pack("<HHIIHH", codec, channels, sample_rate, second, width, bits)
    return riff_chunk(b"fmt ", fields + extra)


def wav(data: bytes, **options) -> bytes:
    """A WAV with ``data`` and the format of ``options``; see `wav_format`."""
    return riff(wav_format(**options), riff_chunk(b"data", data))


def extensible(subformat: int, tail: str = "000000001000800000aa00389b71") -> bytes:
    """What follows the fields of an extensible format: valid bits, speakers, subformat."""
    return struct.pack("<HHIH", 22, 16, 0, subformat) + bytes.fromhex(tail)


def flac_that_declares(
    body: bytes,
    sample_rate: int | None = None,
    channels: int | None = None,
    total: int | None = None,
) -> bytes:
    """A FLAC whose header says something else than its frames (RFC 9639, section 8.2)."""
    start = 18
    fields = int.from_bytes(body[start : start + 8], "big")
    for value, shift, bits in (
        (sample_rate, 44, 20),
        (channels - 1 if channels else None, 41, 3),
        (total, 0, 36),
    ):
        if value is not None:
            mask = (1 << bits) - 1 << shift
            fields = fields & ~mask | value << shift
    return body[:start] + fields.to_bytes(8, "big") + body[start + 8 :]


def flac_without_frames(body: bytes) -> bytes:
    """The FLAC's header alone, which says that it is the last part before no frames."""
    header = flac_that_declares(body, total=0)[:42]
    return header[:4] + bytes([header[4] | 0x80]) + header[5:]


@cache
def _ogg_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = value << 1 ^ (_OGG_POLYNOMIAL if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


def ogg_page(packets: list[bytes], number: int, granule: int, flags: int = 0) -> bytes:
    """One page of whole packets of fewer than 255 bytes each (RFC 3533, section 6)."""
    segments = bytes(len(packet) for packet in packets)
    header = b"OggS" + struct.pack("<BBqIII", 0, flags, granule, 1, number, 0)
    page = header + bytes([len(segments)]) + segments + b"".join(packets)
    checksum = 0
    for byte in page:
        checksum = (checksum << 8 ^ _ogg_table()[checksum >> 24 ^ byte]) & 0xFFFFFFFF
    return page[:22] + struct.pack("<I", checksum) + page[26:]


def silent_opus(seconds: float) -> bytes:
    """An Opus of a few bytes for each second."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<II", 0, 0)
    pages = [ogg_page([head], 0, 0, OGG_FIRST), ogg_page([tags], 1, 0)]
    left = round(seconds * 48_000 / _OPUS_PACKET_SAMPLES)
    granule = 0
    for number in itertools.count(2):
        count = min(left, _MAX_SEGMENTS)
        left -= count
        granule += count * _OPUS_PACKET_SAMPLES
        flags = 0 if left else OGG_LAST
        pages.append(ogg_page([_EMPTY_OPUS_PACKET] * count, number, granule, flags))
        if not left:
            return b"".join(pages)
    raise AssertionError


def without_xing(body: bytes) -> bytes:
    """An MP3 of `encode`, which begins with a Xing frame, without it."""
    return body[body.index(body[:2], 4) :]


def xing_without_count(body: bytes) -> bytes:
    """An MP3 of `encode` whose first frame does not say how many there are."""
    name = re.search(b"Xing|Info", body)
    assert name is not None
    flags = name.end()
    return body[:flags] + bytes(4) + body[flags + 4 :]


def id3(data: bytes, version: int = 3, footer: bool = False) -> bytes:
    """An ID3v2 tag with ``data``."""
    size = bytes(len(data) >> shift & 0x7F for shift in (21, 14, 7, 0))
    flags = 0x10 if footer else 0
    tag = b"ID3" + bytes([version, 0, flags]) + size + data
    return tag + (b"3DI" + tag[3:10] if footer else b"")

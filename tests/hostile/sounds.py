"""Sounds that a server must survive, each with the status that it gets with the default limits.

Each is for a model of windows of 2.56 seconds or longer.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

from tests.hostile.build_sounds import (
    FLOAT,
    OGG_FIRST,
    encode,
    extensible,
    flac_that_declares,
    flac_without_frames,
    id3,
    noise,
    ogg_page,
    riff,
    riff_chunk,
    silent_opus,
    wav,
    wav_format,
    without_xing,
    xing_without_count,
)

SLUGS = {400: "bad-media", 413: "too-large", 415: "unsupported-format"}
"""The slug of the problem that each status comes with."""

_CODECS = (
    ("WAV", "WAV", "PCM_16", 16_000),
    ("FLAC", "FLAC", "PCM_16", 44_100),
    ("VORBIS", "OGG", "VORBIS", 44_100),
    ("OPUS", "OGG", "OPUS", 48_000),
    ("MP3", "MP3", "MPEG_LAYER_III", 44_100),
)
_IMA_ADPCM = 0x11


@cache
def seeds() -> dict[str, bytes]:
    """A good sound of a second in each codec, to damage."""
    return {
        name: encode(noise(1, rate, channels=2), rate, form, subtype)
        for name, form, subtype, rate in _CODECS
    }


def good() -> Iterator[tuple[str, bytes]]:
    for codec, body in seeds().items():
        yield f"a second of {codec}", body
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"):
        yield f"wav of {subtype}", encode(noise(1), 16_000, "WAV", subtype)
        yield f"extensible wav of {subtype}", encode(noise(1), 16_000, "WAVEX", subtype)
    yield "flac of 24 bits", encode(noise(1), 16_000, "FLAC", "PCM_24")
    for form in ("WAV", "FLAC", "OGG"):
        yield f"{form} of 6 channels", encode(noise(1, 48_000, channels=6), 48_000, form)
    for rate in (4000, 8000, 192_000):
        yield f"wav of {rate} Hz", encode(noise(0.5, rate), rate, "WAV")
    yield "flac of 192000 Hz", encode(noise(0.5, 192_000), 192_000, "FLAC")
    yield "one sample", wav(b"\1\0")
    yield "one sample at 192 kHz", wav(b"\1\0", sample_rate=192_000)
    yield "one sample of flac", encode(noise(1)[:1], 16_000, "FLAC")
    yield "half a frame at the end", wav(bytes(4001), channels=2)
    yield "silence", wav(bytes(32_000))
    yield "samples far beyond full scale", float_wav([30_000.0, -30_000.0] * 4000)
    yield "12 bits in two bytes", wav(bytes(4000), bits=12, frame_bytes=2)
    yield "wav of a pipe", riff(wav_format(), riff_chunk(b"data", bytes(4000), 2**32 - 1))
    yield (
        "wav with chunks before and behind",
        riff(
            riff_chunk(b"LIST", b"odd"),
            wav_format(),
            riff_chunk(b"data", bytes(4000)),
            riff_chunk(b"junk", bytes(100)),
        ),
    )
    yield "flac of unknown length", flac_that_declares(seeds()["FLAC"], total=0)
    yield "flac with a tag behind", seeds()["FLAC"] + b"TAG" + bytes(125)
    yield "flac with a tag", id3(bytes(5000)) + seeds()["FLAC"]
    yield "mp3 with tags", id3(bytes(5000)) + id3(b"x", 4, footer=True) + seeds()["MP3"]
    yield "mp3 without a Xing frame", without_xing(seeds()["MP3"])
    silence_and_noise = encode(np.concatenate([noise(1) * 0, noise(1)]), 16_000, "MP3")
    yield "mp3 with a Xing frame that has no count", xing_without_count(silence_and_noise)
    yield "mp3 with a tag behind", seeds()["MP3"] + b"TAG" + bytes(125)
    yield "two minutes of opus", silent_opus(119)


def float_wav(samples: list[float]) -> bytes:
    return wav(np.array(samples, "<f4").tobytes(), codec=FLOAT, bits=32)


def broken() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    for codec, body in seeds().items():
        for share in (0.002, 0.2, 0.5, 0.99):
            yield f"{share:.1%} of {codec}", body[: max(int(len(body) * share), 12)]
        yield f"{codec} without its last byte", body[:-1]
    for codec in ("FLAC", "VORBIS", "OPUS", "MP3"):
        body = seeds()[codec]
        middle = len(body) // 2
        garbage = np.random.default_rng(0).bytes(3000)
        yield f"{codec} with a hole", body[:middle] + garbage + body[middle + 3000 :]
    body = without_xing(seeds()["MP3"])
    yield "mp3 without Xing with a hole", body[:8000] + bytes(3000) + body[11_000:]
    yield "mp3 without Xing and its last byte", without_xing(seeds()["MP3"])[:-1]
    yield "wav without samples", wav(b"")
    yield "flac without samples", flac_without_frames(seeds()["FLAC"])
    yield "wav without a format", riff(riff_chunk(b"data", bytes(100)))
    yield "wav without data", riff(wav_format())
    yield "wav that is only a header", b"RIFF\x24\0\0\0WAVE"
    yield "wav with half a format", riff(riff_chunk(b"fmt ", bytes(8)))
    yield "wav with half an extensible format", wav(bytes(100), codec=0xFFFE)
    yield (
        "wav that declares more than it has",
        riff(wav_format(), riff_chunk(b"data", bytes(4000), 5000)),
    )
    yield "wav of 0 channels", wav(bytes(4000), channels=0)
    yield "wav of 0 Hz", wav(bytes(4000), sample_rate=0)
    yield "wav of 1 Hz", wav(bytes(4000), sample_rate=1)
    yield "wav of 17 bits", wav(bytes(4000), bits=17)
    yield "wav of 0 bits", wav(bytes(4000), bits=0)
    yield "wav whose frames are too short", wav(bytes(4000), channels=2, frame_bytes=3)
    yield "nan", float_wav([0.0, float("nan")] * 100)
    yield "infinity", float_wav([float("inf")] * 100)
    yield (
        "infinities of two channels",
        wav(np.array([np.inf, -np.inf] * 100, "<f4").tobytes(), codec=FLOAT, bits=32, channels=2),
    )
    yield "numbers that overflow", float_wav([3e38] * 100)
    flac = seeds()["FLAC"]
    yield "flac of 1 Hz", flac_that_declares(flac, sample_rate=1)
    yield "flac of 0 Hz", flac_that_declares(flac, sample_rate=0)
    yield "flac that declares a year", flac_that_declares(flac, total=2**36 - 1)
    yield "flac that declares one sample more", flac_that_declares(flac, total=44_101)
    yield "flac that declares other channels", flac_that_declares(flac, channels=8)
    yield "ogg of one header", seeds()["OPUS"][:47]
    yield "mp3 of one frame's header", b"\xff\xfb\x90\x44"


def too_large() -> Iterator[tuple[str, bytes]]:
    yield "ten minutes of opus", silent_opus(600)
    yield "three minutes of flac", encode(np.zeros(180 * 8000, np.int16), 8000, "FLAC")
    yield "wav of a rate of 2**32 - 1", wav(bytes(4000), sample_rate=2**32 - 1)
    yield "wav of 655350 Hz", wav(bytes(4000), sample_rate=655_350)
    yield "flac that declares 655350 Hz", flac_that_declares(seeds()["FLAC"], sample_rate=655_350)
    yield "wav of 9 channels", wav(bytes(9 * 2000), channels=9)
    yield "wav of 32767 channels", wav(bytes(2 * 32_767), channels=32_767, frame_bytes=65_534)
    yield (
        "wav of 11 seconds of 8 channels at 192 kHz",
        wav(bytes(11 * 192_000 * 8), codec=6, bits=8, channels=8, sample_rate=192_000),
    )
    yield "wav of empty chunks", riff(*[riff_chunk(b"junk", b"")] * 20_000, wav_format())


def unsupported() -> Iterator[tuple[str, bytes]]:
    block = struct.pack("<HH", 2, 505)
    yield "ima adpcm", wav(bytes(1024), codec=_IMA_ADPCM, bits=4, frame_bytes=256, extra=block)
    yield (
        "a million samples in a block of ima adpcm",
        wav(bytes(256), codec=_IMA_ADPCM, bits=4, frame_bytes=65_535, extra=b"\2\0\xff\xff"),
    )
    yield (
        "ima adpcm behind a tag",
        id3(b"x") + wav(bytes(1024), codec=_IMA_ADPCM, bits=4, frame_bytes=256, extra=block),
    )
    yield "extensible ima adpcm", wav(bytes(100), codec=0xFFFE, extra=extensible(_IMA_ADPCM))
    tail = extensible(1, "00" * 14)
    yield "extensible of an unknown family", wav(bytes(100), codec=0xFFFE, extra=tail)
    yield (
        "a second format of ima adpcm",
        riff(
            wav_format(),
            wav_format(codec=_IMA_ADPCM, bits=4, frame_bytes=256, extra=block),
            riff_chunk(b"data", bytes(1024)),
        ),
    )
    for subtype in ("MS_ADPCM", "IMA_ADPCM", "GSM610"):
        yield f"wav of {subtype}", encode(noise(0.2), 16_000, "WAV", subtype)
    for form in ("AIFF", "AU", "CAF", "RF64", "W64", "VOC"):
        yield form, encode(noise(0.2), 16_000, form, "PCM_16")
    for name, packet in (("speex", b"Speex   1.2"), ("flac", b"\x7fFLAC\1\0"), ("noise", b"noise")):
        yield f"ogg of {name}", ogg_page([packet.ljust(80, b"\0")], 0, 0, OGG_FIRST) + bytes(100)
    yield "m4a", b"\0\0\0\x20ftypM4A " + bytes(100)
    yield "webm", b"\x1aE\xdf\xa3" + bytes(100)
    yield "aac", b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(100)
    yield "id3 without a sound", id3(bytes(100))
    yield "id3 that is longer than the body", id3(bytes(2000))[:100]
    yield "text", b"a sound"
    yield "playlist", b"#EXTM3U\nhttp://169.254.169.254/latest/meta-data/"
    yield "path", b"/etc/passwd"
    yield "utf-16", "text".encode("utf-16") * 100
    yield "ones", b"\xff" * 10_000
    yield "zeros", bytes(10_000)
    yield "mp3 frame before noise", b"\xff\xfb\x90\x44" + bytes(10_000)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        file = io.BytesIO()
        Image.new("RGB", (40, 30)).save(file, form)
        yield f"picture of {form}", file.getvalue()


@cache
def hostile_sounds() -> dict[str, tuple[bytes, int]]:
    """All of them, by name: the body and its status."""
    families = ((200, good), (400, broken), (413, too_large), (415, unsupported))
    return {name: (body, status) for status, family in families for name, body in family()}

"""What a body is, by its content; and that the decoder sees only what was checked."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest

from server.audio.formats import FORMATS, open_stream, sniff
from server.audio.id3 import skip_tags
from server.errors import UnsupportedFormat
from server.media.limits import AudioLimits

soundfile = pytest.importorskip("soundfile")

from tests.hostile.build_sounds import (  # noqa: E402
    encode,
    extensible,
    id3,
    noise,
    riff,
    riff_chunk,
    wav,
    wav_format,
    without_xing,
)
from tests.hostile.images import images  # noqa: E402
from tests.hostile.sounds import hostile_sounds, seeds  # noqa: E402

LIMITS = AudioLimits()


def read(body: bytes) -> np.ndarray:
    samples, _ = soundfile.read(io.BytesIO(body), dtype="float32", always_2d=True)
    return samples


def test_sniff_names_the_format() -> None:
    names = {"VORBIS": "OGG", "OPUS": "OGG"}
    for name, body in seeds().items():
        assert sniff(body) == names.get(name, name)
        assert open_stream(body, LIMITS).format in FORMATS


def test_no_picture_is_a_sound() -> None:
    assert [name for name, body, *_ in images() if sniff(body)] == []


def test_random_bytes_are_no_sound() -> None:
    generator = np.random.default_rng(0)
    synchronised = [b"\xff\xfb" + generator.bytes(3000) for _ in range(2000)]
    assert not [body for body in synchronised if sniff(body)]


def test_all_good_sounds_are_recognised() -> None:
    for name, (body, status) in hostile_sounds().items():
        assert sniff(body) or status != 200, name


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_a_plain_header_changes_no_sample(form: str, subtype: str) -> None:
    body = encode(noise(0.1, channels=3), 16_000, form, subtype)
    plain = open_stream(body, LIMITS).body
    np.testing.assert_array_equal(read(plain), read(body))


def test_chunks_that_are_no_samples_never_reach_the_decoder() -> None:
    secret = riff_chunk(b"LIST", b"secret")
    body = riff(secret, wav_format(), secret, riff_chunk(b"data", bytes(10)), secret)
    assert b"secret" not in open_stream(body, LIMITS).body


def test_the_codec_of_an_extensible_header() -> None:
    body = wav(bytes(100), codec=0xFFFE, extra=extensible(1))
    assert open_stream(body, LIMITS).body == wav(bytes(100))


def test_24_bits_in_four_bytes_are_the_high_ones() -> None:
    loud = np.array([2**30, -(2**31)], "<i4").tobytes()
    body = wav(loud, bits=24, frame_bytes=4)
    np.testing.assert_array_equal(read(open_stream(body, LIMITS).body)[:, 0], [0.5, -1])


@pytest.mark.parametrize("codec", [0, 2, 0x11, 0x31, 0x55, 0x1234])
def test_other_codecs_of_wav_are_refused_by_name(codec: int) -> None:
    with pytest.raises(UnsupportedFormat, match=r"the WAV is .*; allowed are PCM"):
        open_stream(wav(bytes(100), codec=codec), LIMITS)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_without_xing_keeps_all_its_frames(rate: int, channels: int) -> None:
    """Silence, then noise: the bit rate of the first frame says nothing of the rest."""
    samples = np.concatenate([np.zeros((rate, channels), np.float32), noise(1, rate, channels)])
    body = encode(samples, rate, "MP3")
    stream = open_stream(without_xing(body), LIMITS)
    assert 0 <= len(read(stream.body)) - len(samples) < 0.3 * rate


def test_tags_are_skipped() -> None:
    assert skip_tags(b"ID3") == 0
    assert skip_tags(id3(b"x" * 300) + b"y") == 310
    assert skip_tags(id3(b"x") + id3(b"y", 4, footer=True)) == 11 + 21
    assert skip_tags(id3(b"") * 1000) <= 100
    assert open_stream(id3(b"x") + seeds()["MP3"], LIMITS).body == seeds()["MP3"]


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"FORM\0\0\0\0AIFF", "AIFF"),
        (b"\0\0\0\x20ftypM4A ", "M4A"),
        (b"\0\0\0\x20ftypisom", "MP4"),
        (b"\x1aE\xdf\xa3", "WebM"),
        (b"\xff\xf1\x50\x80", "AAC"),
        (b"ID3\4\0\0\0\0\0\1x\xff\xf9\x50\x80", "AAC"),
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "a WebP image"),
    ],
)
def test_foreign_formats_are_named(beginning: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=rf"the body is {name}.*allowed are WAV, FLAC"):
        open_stream(beginning.ljust(100, b"\0"), LIMITS)


def test_formats_and_pictures_need_no_library_of_sound() -> None:
    code = (
        "import server.audio.formats, server.audio.picture, sys;"
        " sys.exit(bool({'soundfile', 'soxr', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

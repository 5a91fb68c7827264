"""Videos that a server must survive, each with the status that it gets with the default limits.

Each is for a model that takes one clip, from the middle of the video.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

from tests.hostile.build_videos import (
    alias,
    box,
    ebml_header,
    element,
    encode,
    index_first,
    overwrite,
    packets_of,
    remux,
    repeated,
    sound,
    that_declares_duration,
    that_declares_size,
    together,
    with_matrix,
    with_reference,
    with_table,
    with_tracks,
)

SLUGS = {400: "bad-media", 413: "too-large", 415: "unsupported-format"}
"""The slug of the problem that each status comes with."""

_CODECS = (
    ("H.264", "libx264", "mp4"),
    ("HEVC", "libx265", "mp4"),
    ("VP8", "libvpx", "webm"),
    ("VP9", "libvpx-vp9", "webm"),
    ("AV1", "libsvtav1", "matroska"),
    ("MPEG-4", "mpeg4", "mov"),
)
_SEGMENT = 0x18538067
_COVER = 0x400  # FFmpeg's disposition of an attached picture
_HEADER_ONLY = {"movflags": "empty_moov+frag_keyframe"}
_ENCRYPTION = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "0" * 32,
    "encryption_kid": "0" * 32,
}


@cache
def seeds() -> dict[str, bytes]:
    """A good video of a second in each codec, to damage."""
    return {name: encode(codec, form, g=10) for name, codec, form in _CODECS}


def good() -> Iterator[tuple[str, bytes]]:
    for codec, body in seeds().items():
        yield f"a second of {codec}", body
    mp4 = seeds()["H.264"]
    yield "one frame", encode(count=1)
    yield "one frame of webm", encode("libvpx", "webm", count=1)
    yield "two frames", encode(count=2)
    yield "one frame a second", encode(count=5, rate=1)
    yield "one frame a minute", encode(count=3, rate=1, times=(0, 60, 120))
    yield "120 frames a second", encode("libvpx", "webm", rate=120)
    yield "variable frame rate", encode(times=[number**2 for number in range(30)])
    yield "times from 40 seconds on", encode("libvpx", "webm", times=range(1000, 1030))
    for size in ((65, 49), (1, 1), (2, 300), (301, 1)):
        yield f"{size[0]} x {size[1]}", encode("libvpx", "webm", 5, size)
    yield "odd size of h.264", encode(size=(65, 49), pix_fmt="yuv444p")
    yield "a size that is no multiple of 16", encode(size=(66, 50))
    for name, matrix in (
        ("left", (0, -1, 1, 0)),
        ("right", (0, 1, -1, 0)),
        ("flip", (-1, 0, 0, 1)),
    ):
        yield f"rotated: {name}", with_matrix(mp4, *matrix)
    yield "a matrix of zeros", with_matrix(mp4, 0, 0, 0, 0)
    yield "interlaced", encode(flags="+ildct+ilme", x264_params="interlaced=1")
    for pix_fmt in ("yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le", "gray", "yuvj420p"):
        yield f"h.264 of {pix_fmt}", encode(pix_fmt=pix_fmt)
    yield (
        "hevc of HDR",
        encode(
            "libx265",
            pix_fmt="yuv420p10le",
            color_primaries="bt2020",
            color_trc="smpte2084",
            colorspace="bt2020nc",
        ),
    )
    yield "av1 of 10 bits", encode("libsvtav1", pix_fmt="yuv420p10le")
    yield "rgb", encode("libx264rgb", pix_fmt="rgb24")
    yield "fragmented", encode(container=_HEADER_ONLY, g=10)
    yield "index first", index_first(mp4)
    yield "mkv of a pipe", encode(form="matroska", container={"live": "1"})
    yield "a duration that lies", that_declares_duration(mp4, 2**31)
    yield "a frame of 2 ** -31 seconds", that_shows_it_shortly(encode(count=1))
    yield "a duration of 0", that_declares_duration(mp4, 0)
    yield "a size that lies", that_declares_size(mp4, 16, 16)
    cover = encode("mjpeg", "mov", 1, pix_fmt="yuvj420p")
    yield "a cover", together(cover, mp4, form="mp4", flags=(_COVER, 0))
    yield "sound and video", together(sound(), mp4, form="mp4")
    yield "sound and video in mkv", together(sound("matroska"), seeds()["VP8"])
    yield "a delay of 2 ** 31 frames", with_table(encode(bf=2), "ctts", 1, 2**31 - 1, 512)
    yield "100 tracks", with_tracks(mp4, 100)
    yield "mp4 with more behind", mp4 + b"more" * 100
    yield "mov older than file types", mp4.replace(b"ftyp", b"free")
    yield "samples that lie elsewhere too", with_reference(mp4, b"url ", b"http://169.254.169.254/")
    yield "a hundred seconds of nothing", repeated(100, milliseconds=1000)


def broken() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    for codec, body in seeds().items():
        for share in (0.05, 0.5, 0.99):
            yield f"{share:.1%} of {codec}", body[: int(len(body) * share)]
        yield f"{codec} without its last byte", body[:-1]
    mp4, webm = seeds()["H.264"], seeds()["VP8"]
    noise = np.random.default_rng(0).bytes(100_000)
    for codec in ("H.264", "HEVC", "VP9", "AV1"):
        body = seeds()[codec]
        start = len(body) // 5
        end = 3 * start
        yield f"{codec} with a hole", body[:start] + noise[: end - start] + body[end:]
    yield "sound alone", sound()
    yield "sound in mkv", sound("matroska")
    cover = encode("mjpeg", "mov", 1, pix_fmt="yuvj420p")
    yield "sound with a cover", together(cover, sound(), form="mp4", flags=(_COVER, 0))
    yield "mp4 without frames", with_table(mp4, "stsz", 0, 0)
    fragmented = encode(container=_HEADER_ONLY)
    yield "fragmented without fragments", fragmented[: fragmented.index(b"moof") - 4]
    yield "mp4 of a header", mp4[:32]
    yield "webm of a header", webm[:40]
    yield "mp4 of one box", box(b"ftyp", b"isom\0\0\2\0isom")
    yield "mov of noise", box(b"mdat", noise)
    yield "webm of noise", webm[:300] + noise
    yield "samples in another file", with_reference(mp4, b"alis", alias(b"/etc/passwd."))
    yield "2 ** 31 samples of a byte", with_table(mp4, "stsz", 1, 2**31 - 1)
    yield "2 ** 32 - 1 samples in a table", with_table(mp4, "stsz", 0, 2**32 - 1)
    yield "2 ** 28 samples of no byte", with_table(mp4, "stsz", 0, 2**28)
    yield "2 ** 28 durations in a table", with_table(mp4, "stts", 2**28)
    yield "2 ** 28 keyframes in a table", with_table(mp4, "stss", 2**28)
    yield "samples beyond the end", with_table(mp4, "stco", 1, 2**31 - 1)
    yield "no chunks", with_table(mp4, "stco", 0)
    yield "a sample of 2 ** 29 bytes", with_table(mp4, "stsz", 0, 30, 2**29, *[100] * 29)
    for power in (27, 31):
        yield f"a table of 2 ** {power} keyframes", with_table(mp4, "stss", 2**power, 1)
    yield "a table of 2 ** 32 - 1 delays", with_table(encode(bf=2), "ctts", 2**32 - 1, 30, 512)
    yield "the same bytes again and again", again_and_again(mp4, 20_000)
    yield "deep elements", deep_elements(20_000)
    for first, second in (("libvpx", (96, 80)), ("libvpx-vp9", (32, 16))):
        yield f"{first} that changes its size", changing(first, second)


def again_and_again(body: bytes, count: int) -> bytes:
    """An MP4 of ``count`` samples, all of which are its first 1,000 bytes."""
    sizes = with_table(body, "stsz", 0, count, *[1000] * count)
    chunks = with_table(sizes, "stsc", 1, 1, 1, 1)
    return with_table(chunks, "stco", count, *[48] * count)


def that_shows_it_shortly(body: bytes) -> bytes:
    """An MP4 of one frame that is shown for one unit of time, the smallest one."""
    small = overwrite(body, "moov/trak/mdia/mdhd", 12, struct.pack(">I", 2**31 - 1))
    return with_table(small, "stts", 1, 1, 1)


def deep_elements(depth: int) -> bytes:
    """A WebM whose tags are in each other."""
    content = b""
    for _ in range(depth):
        content = element(0x67C8, content)
    tags = element(0x1254C367, element(0x7373, content))
    return ebml_header(b"webm") + element(_SEGMENT, tags)


def changing(codec: str, size: tuple[int, int]) -> bytes:
    """A WebM of which half has another ``size``."""
    first = encode(codec, "webm", 10)
    packets = [*packets_of(first), *packets_of(encode(codec, "webm", 10, size))]
    return remux([(data, 40 * time, time in (0, 10)) for time, data in enumerate(packets)], first)


def with_gap(milliseconds: int) -> bytes:
    """A WebM of three frames, the last of which comes late."""
    body = encode("libvpx", "webm", 3)
    times = (0, 40, milliseconds)
    packets = zip(packets_of(body), times, strict=True)
    return remux([(data, time, time == 0) for data, time in packets], body)


def too_large() -> Iterator[tuple[str, bytes]]:
    yield "300 frames of 2048 x 2048", repeated(300, (2048, 2048))
    yield "a side of 5000", encode("libvpx", "webm", 2, (5000, 2))
    yield "five minutes and a second", repeated(302, milliseconds=1000)
    yield "40000 frames", repeated(40_000, milliseconds=1)
    yield "8000 frames before the middle", repeated(9000, milliseconds=33)
    yield "250 frames a second", repeated(100, milliseconds=4)
    yield "10000 tracks", with_tracks(seeds()["H.264"], 10_000)
    yield "a gap of a week", with_gap(7 * 86_400_000)
    yield "a million boxes", seeds()["H.264"][:32] + box(b"free", b"") * 1_000_000


def unsupported() -> Iterator[tuple[str, bytes]]:
    for codec, form, pix_fmt in (
        ("mjpeg", "mov", "yuvj420p"),
        ("jpeg2000", "mov", "yuv420p"),
        ("prores", "mov", "yuv422p10le"),
        ("png", "mov", "rgb24"),
        ("rawvideo", "mov", "yuv422p"),
        ("mpeg2video", "mp4", "yuv420p"),
        ("ffv1", "matroska", "yuv420p"),
        ("mpeg1video", "matroska", "yuv420p"),
    ):
        yield f"{form} of {codec}", encode(codec, form, 2, pix_fmt=pix_fmt)
    for codec, form in (("mpeg4", "avi"), ("flv", "flv"), ("libx264", "mpegts"), ("wmv2", "asf")):
        yield form, encode(codec, form, 2)
    for codec, form in (("mpeg2video", "vob"), ("libvpx", "ivf"), ("libx264", "h264")):
        yield form, encode(codec, form, 2)
    yield "mov of h.263", encode("h263", "mov", 2, (176, 144))
    yield "encrypted", encode(container=_ENCRYPTION)
    yield (
        "no known codec",
        overwrite(seeds()["H.264"], "moov/trak/mdia/minf/stbl/stsd", 12, b"none"),
    )
    fragmented = encode(container=_HEADER_ONLY)
    yield "a fragment alone", fragmented[fragmented.index(b"moof") - 4 :]
    yield "HLS", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    yield "HLS of an address", b"#EXTM3U\nhttp://169.254.169.254/latest/meta-data/"
    yield "list of files", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "SDP", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    yield "DASH", b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>'
    yield "another document", ebml_header(b"notes") + bytes(100)
    yield "m4a", box(b"ftyp", b"M4A \0\0\2\0isom") + bytes(100)
    yield "avif", box(b"ftyp", b"avif\0\0\0\0mif1") + bytes(100)
    yield "text", b"a video"
    yield "path", b"/etc/passwd"
    yield "zeros", bytes(10_000)
    yield "ones", b"\xff" * 10_000
    yield "wav", b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(100)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        file = io.BytesIO()
        Image.new("RGB", (40, 30)).save(file, form)
        yield f"picture of {form}", file.getvalue()


@cache
def hostile_videos() -> dict[str, tuple[bytes, int]]:
    """All of them, by name: the body and its status."""
    families = ((200, good), (400, broken), (413, too_large), (415, unsupported))
    return {name: (body, status) for status, family in families for name, body in family()}

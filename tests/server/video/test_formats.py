"""What a body is, by its content."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from server.errors import BadMedia, TooLarge, UnsupportedFormat
from server.media.limits import VideoLimits
from server.video.formats import FORMATS, find_demuxer, sniff

pytest.importorskip("av", reason="needs the extra video")

from server.video.front_end import prepare
from server.video.warm_up import TRANSFORM
from tests.hostile.build_videos import box, ebml_header, element, encode
from tests.hostile.images import images
from tests.hostile.videos import hostile_videos, seeds

_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
_BLOCK = 0xA3


def test_sniff_names_the_format() -> None:
    found = {name: sniff(body) for name, body in seeds().items()}
    assert found == {
        "H.264": "MP4",
        "HEVC": "MP4",
        "VP8": "WebM",
        "VP9": "WebM",
        "AV1": "MKV",
        "MPEG-4": "MOV",
    }
    assert set(found.values()) == set(FORMATS)


def test_all_good_videos_are_recognised() -> None:
    for name, (body, status) in hostile_videos().items():
        assert sniff(body) or status != 200, name


def test_no_picture_is_a_video() -> None:
    assert [name for name, body, *_ in images() if sniff(body)] == []


def test_random_bytes_are_no_video() -> None:
    generator = np.random.default_rng(0)
    assert not [body for body in (generator.bytes(300) for _ in range(1000)) if sniff(body)]


@pytest.mark.parametrize("form", ["mp4", "matroska", "webm"])
def test_every_cut_is_noticed(form: str) -> None:
    body = encode("libvpx-vp9", form, 2)
    assert find_demuxer(body) == ("mov" if form == "mp4" else "matroska")
    for length in range(60, len(body), 7):
        with pytest.raises(BadMedia, match="truncated"):
            prepare(body[:length], TRANSFORM, VideoLimits())


def test_what_lies_behind_an_mp4_is_ignored() -> None:
    body = seeds()["H.264"]
    for tail in (b"\0", b"a tail without any meaning", bytes(100), box(b"free", b"")):
        assert find_demuxer(body + tail) == "mov"


def segment(*children: bytes) -> bytes:
    return ebml_header(b"webm") + element(_SEGMENT, b"".join(children))


def test_elements_have_to_be_in_each_other() -> None:
    block = element(_BLOCK, bytes(10))
    assert find_demuxer(segment(element(_CLUSTER, block), element(_CLUSTER, block)))
    for damaged in (
        element(_CLUSTER, block[:-1]),
        element(_CLUSTER, block + bytes(1)),
        element(_CLUSTER, b"\xa3\xff"),
        element(_CLUSTER, block)[:-1] + element(_CLUSTER, b""),
    ):
        with pytest.raises(BadMedia, match="damaged"):
            find_demuxer(segment(damaged))


def test_parts_are_limited() -> None:
    with pytest.raises(TooLarge, match="elements"):
        find_demuxer(segment(element(_CLUSTER, b"\xa3\x80" * 300_000)))
    with pytest.raises(TooLarge, match="tracks"):
        find_demuxer(segment(element(0x1654AE6B, b"\xae\x80" * 101)))
    with pytest.raises(TooLarge, match="boxes"):
        find_demuxer(box(b"ftyp", b"isom") + box(b"free", b"") * 100_000)
    with pytest.raises(TooLarge, match="tracks"):
        find_demuxer(box(b"moov", box(b"trak", b"") * 101))


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"#EXTM3U\n", "an HLS playlist"),
        (b"\x47" + (bytes(187) + b"\x47") * 3, "an MPEG transport stream"),
        (bytes(4) + b"\x47" + (bytes(191) + b"\x47") * 3, "an MPEG transport stream"),
        (b"\0\0\0\x18styp", "a fragment of an MP4"),
        (b"\0\0\0\x20ftypheic", "a HEIC image"),
        (ebml_header(b"notes"), "a relative of Matroska"),
        (b"%PDF-1.7", "PDF"),
        (b"#!AMR\n", "AMR"),
    ],
)
def test_foreign_formats_are_named(beginning: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=rf"the body is {name}.*allowed are MP4, MOV"):
        find_demuxer(beginning.ljust(1000, b"\0"))


def test_formats_need_no_library() -> None:
    code = (
        "import server.video.formats, sys;"
        " sys.exit(bool({'av', 'numpy', 'PIL', 'soundfile', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

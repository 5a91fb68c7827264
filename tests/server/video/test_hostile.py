"""Hostile videos, decoded as in a decode worker."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.errors import BadMedia
from server.media.limits import VideoLimits

av = pytest.importorskip("av", reason="needs the extra video")

from server.video import stream  # noqa: E402
from server.video.front_end import prepare  # noqa: E402
from server.video.warm_up import TRANSFORM  # noqa: E402
from tests.hostile.build_videos import alias, encode, with_reference  # noqa: E402
from tests.hostile.videos import hostile_videos  # noqa: E402

_ROOT = Path(__file__).parents[3]
_SECONDS = 300.0


def decode_confined(bodies: list[bytes]) -> list[str]:
    """The status of each, decoded with the rights and the memory of a decode worker."""
    head = json.dumps([len(body) for body in bodies]).encode() + b"\n"
    process = subprocess.run(
        [sys.executable, "-m", "tests.server.video.confined"],
        input=head + b"".join(bodies),
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        cwd=_ROOT,
        timeout=_SECONDS,
        check=False,
    )
    assert process.returncode == 0, process.stderr.decode()
    return process.stdout.decode().split()


def test_hostile_videos_get_their_status_without_threads_files_or_much_memory() -> None:
    videos = hostile_videos()
    found = decode_confined([body for body, _ in videos.values()])
    expected = [str(status) for _, status in videos.values()]
    wrong = [
        (name, status)
        for name, status, right in zip(videos, found, expected, strict=True)
        if status != right
    ]
    assert not wrong


def test_no_other_file_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def refuse(name: str, *_: object) -> None:
        names.append(name)
        raise PermissionError

    body = with_reference(encode(), b"alis", alias(b"/etc/passwd."))
    following = {"enable_drefs": "1"}
    with pytest.raises(PermissionError):
        av.open(io.BytesIO(body), format="mov", options=following, io_open=refuse)
    assert names == ["passwd."]
    monkeypatch.setattr(stream, "_refuse", refuse)
    with pytest.raises(BadMedia):
        prepare(body, TRANSFORM, VideoLimits())
    assert names == ["passwd."]


_LARGEST = (1920, 1088)


@pytest.mark.slow
def test_the_largest_frames_fit_into_the_memory_of_a_decode_worker() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (136, 240, 3), np.uint8)
    picture = noise.repeat(8, axis=0).repeat(8, axis=1)
    references = "ref=16:bframes=8:level=6.2"

    def large(codec: str, form: str, pix_fmt: str, **options: Any) -> bytes:
        shifted = (np.roll(picture, 8 * number, axis=1) for number in range(30))
        return encode(codec, form, 30, _LARGEST, pix_fmt=pix_fmt, frames=shifted, **options)

    bodies = [
        large("libx264", "mp4", "yuv420p", x264_params=references),
        large("libx264", "mp4", "yuv444p10le", x264_params=references),
        large("libx265", "mp4", "yuv444p10le", bf="4", refs="4"),
        large("libvpx-vp9", "webm", "yuv444p"),
        large("libsvtav1", "mp4", "yuv420p10le"),
        large("mpeg4", "mov", "yuv420p"),
    ]
    assert decode_confined(bodies) == ["200"] * len(bodies)


def test_encoding_leaves_the_priority_of_this_process() -> None:
    before = os.sched_getscheduler(0)
    encode("libsvtav1", count=1)
    assert os.sched_getscheduler(0) == before

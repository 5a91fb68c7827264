"""From an encoded video to a model's inputs: the right frames, upright, in the right colours."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.errors import BadMedia, RequestError, TooLarge
from server.media.decoded import Decoded, VideoInfo, Window
from server.media.limits import VideoLimits
from server.media.transforms import VideoTransform
from server.video.sampling import sample

av = pytest.importorskip("av", reason="needs the extra video")

from server.video.crops import cut_crops  # noqa: E402
from server.video.decoder import Decoder  # noqa: E402
from server.video.front_end import prepare  # noqa: E402
from server.video.pixels import to_image  # noqa: E402
from server.video.warm_up import BODY  # noqa: E402
from server.video.warm_up import TRANSFORM as WARM_UP  # noqa: E402
from tests.hostile.build_videos import (  # noqa: E402
    edit,
    encode,
    packets_of,
    remux,
    repeated,
    with_matrix,
    with_table,
    without_first,
)
from tests.hostile.videos import seeds  # noqa: E402

LIMITS = VideoLimits()
TRANSFORM = VideoTransform(frames=4, tubelet=2, height=32, width=32, resize=32, stride=2)
SAMPLINGS = (
    TRANSFORM,
    replace(TRANSFORM, stride=3, clips=3, crops=3),
    replace(TRANSFORM, sampling="uniform", clips=2),
    replace(TRANSFORM, frames=16, sampling="uniform", channels=1),
)
_OPEN_GROUPS = "open-gop=1:bframes=3:keyint=10:min-keyint=10:log-level=none"


def groups(codec: str = "libx264", form: str = "mp4", **options: Any) -> bytes:
    """60 frames, of which each tenth is a keyframe."""
    return encode(codec, form, 60, **{"g": 10, **options})


def hidden(codec: str) -> bytes:
    """Some frames are not shown, but others refer to them."""
    return groups(codec, "webm", deadline="good", auto_alt_ref=1, lag_in_frames=8)


def wrong_keyframes() -> bytes:
    """An index in which all frames are keyframes."""
    return with_table(encode("libx265", count=60), "stss", 60, *range(1, 61))


SEEKABLE: dict[str, Callable[[], bytes]] = {
    "h264": partial(groups, bf=2),
    "h264 in mkv": partial(groups, form="matroska", bf=2),
    "h264 of open groups": partial(
        groups, form="matroska", x264_params=_OPEN_GROUPS.replace("none", "-1"), preset="veryfast"
    ),
    "h264 in fragments": partial(groups, container={"movflags": "frag_keyframe+empty_moov"}),
    "h264 of a variable rate": partial(groups, times=[n * n for n in range(60)], rate=300),
    "hevc": partial(groups, "libx265", x265_params="keyint=10:bframes=3:log-level=none:pools=none"),
    "hevc of open groups": partial(groups, "libx265", x265_params=f"{_OPEN_GROUPS}:pools=none"),
    "vp8": partial(groups, "libvpx", "webm"),
    "vp8 with hidden frames": partial(hidden, "libvpx"),
    "vp9": partial(groups, "libvpx-vp9", "webm"),
    "vp9 with hidden frames": partial(hidden, "libvpx-vp9"),
    "av1": partial(groups, "libsvtav1"),
    "av1 in mkv": partial(groups, "libsvtav1", "matroska"),
    "mpeg4": partial(groups, "mpeg4", "mov", bf=2),
}
# Their packets do not tell which frames there are.
INEXACT: dict[str, Callable[[], bytes]] = {
    "h264 that refreshes bit by bit": partial(
        groups, form="matroska", x264_params="intra-refresh=1:keyint=10", preset="veryfast"
    ),
    "hevc keyframes that are none": wrong_keyframes,
}


@cache
def video(name: str) -> bytes:
    return (SEEKABLE | INEXACT)[name]()


def decode_all(body: bytes) -> list[Image.Image]:
    """All frames, decoded from the first on."""
    with av.open(io.BytesIO(body)) as container:
        return [to_image(frame) for frame in container.decode(video=0)]


def info(decoded: Decoded) -> VideoInfo:
    assert isinstance(decoded.media, VideoInfo)
    return decoded.media


def expected_inputs(body: bytes, transform: VideoTransform) -> np.ndarray:
    images = decode_all(body)
    clips = [
        np.stack([np.stack(list(cut_crops(images[number], transform))) for number in clip], axis=2)
        for clip in sample(len(images), transform)
    ]
    return np.concatenate(clips).reshape(-1, *transform.size)


@pytest.mark.parametrize("transform", SAMPLINGS, ids=["middle", "clips", "uniform", "grey"])
@pytest.mark.parametrize("name", [*SEEKABLE, *INEXACT])
def test_frames_are_those_of_a_full_decoding(name: str, transform: VideoTransform) -> None:
    body = video(name)
    decoded = prepare(body, transform, LIMITS)
    np.testing.assert_array_equal(decoded.inputs, expected_inputs(body, transform))
    assert info(decoded).frames == 60


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of packets that are given to the decoder in each go."""
    counts: list[int] = []
    original = Decoder.decode

    def decode(self: Decoder, packets: Iterable[Any]) -> Iterator[Any]:
        counts.append(0)

        def count() -> Iterator[Any]:
            for packet in packets:
                counts[-1] += 1
                yield packet

        return original(self, count())

    monkeypatch.setattr(Decoder, "decode", decode)
    return counts


@pytest.mark.parametrize("name", SEEKABLE)
def test_only_what_is_needed_is_decoded(name: str, fed: list[int]) -> None:
    prepare(video(name), TRANSFORM, LIMITS)
    # 8 frames from the 26th on, the keyframe before, and what a decoder delays: more where groups
    # are open, and the first of them is not complete.
    assert len(fed) == 1
    assert fed[0] <= 30


@pytest.mark.parametrize("name", INEXACT)
def test_all_is_decoded_where_packets_do_not_tell(name: str, fed: list[int]) -> None:
    prepare(video(name), replace(TRANSFORM, stride=8), LIMITS)
    assert max(fed) == 60


def test_frames_far_from_each_other_are_decoded_one_by_one(fed: list[int]) -> None:
    body = encode(count=100, g=1)
    uniform = replace(TRANSFORM, sampling="uniform")
    np.testing.assert_array_equal(
        prepare(body, uniform, LIMITS).inputs, expected_inputs(body, uniform)
    )
    assert len(fed) == 4
    assert sum(fed) <= 8


def test_frames_that_an_edit_list_hides_do_not_count() -> None:
    """Shown are 20 frames from the sixth on, which is no keyframe."""
    body = encode(count=30, g=10)
    entry = np.array([0, 1, 800, 5 * 512, 1 << 16], ">u4").tobytes()
    cut = edit(body, "moov/trak/edts/elst", lambda _: entry)
    whole, shown = decode_all(body), decode_all(cut)
    assert [image.tobytes() for image in shown[:20]] == [image.tobytes() for image in whole[5:25]]
    for transform in SAMPLINGS:
        decoded = prepare(cut, transform, LIMITS)
        np.testing.assert_array_equal(decoded.inputs, expected_inputs(cut, transform))


@pytest.mark.parametrize("name", ["h264 in mkv", "vp8", "vp9"])
def test_a_cut_video_begins_with_its_first_keyframe(name: str) -> None:
    form = "matroska" if name == "h264 in mkv" else "webm"
    cut, begun = (without_first(video(name), count, form) for count in (5, 10))
    for transform in SAMPLINGS:
        decoded = prepare(cut, transform, LIMITS)
        np.testing.assert_array_equal(decoded.inputs, expected_inputs(begun, transform))
        assert info(decoded).frames == 50


@pytest.mark.parametrize("name", ["h264 of open groups", "hevc of open groups"])
def test_frames_that_refer_to_what_was_cut_off_do_not_count(name: str) -> None:
    cut = without_first(video(name), 15, "matroska")
    for transform in SAMPLINGS:
        decoded = prepare(cut, transform, LIMITS)
        np.testing.assert_array_equal(decoded.inputs, expected_inputs(cut, transform))
        assert info(decoded).frames == len(decode_all(cut)) < 45


def test_info_and_windows() -> None:
    body = encode("libvpx", "webm", 60, (80, 48), rate=20)
    transform = replace(TRANSFORM, clips=2, crops=3)
    decoded = prepare(body, transform, LIMITS)
    assert decoded.inputs.shape == (6, 3, 4 * 32, 32)
    assert decoded.inputs.dtype == np.uint8
    media = info(decoded)
    assert (media.frames, media.width, media.height, media.codec) == (60, 80, 48, "vp8")
    assert media.seconds == pytest.approx(3)
    assert media.frame_rate == pytest.approx(20)
    # Each from its first frame to the end of its fourth, 6 frames later.
    expected = [Window(0, 0.35, crop) for crop in range(3)]
    expected += [Window(2.6, 2.95, crop) for crop in range(3)]
    assert [window.crop for window in decoded.windows] == [window.crop for window in expected]
    for window, other in zip(decoded.windows, expected, strict=True):
        assert window.start == pytest.approx(other.start)
        assert window.end == pytest.approx(other.end)


def test_a_video_shorter_than_a_clip_repeats_its_last_frame() -> None:
    decoded = prepare(encode(count=3), TRANSFORM, LIMITS)
    frames = decoded.inputs.reshape(3, 4, 32, 32)
    assert not np.array_equal(frames[:, 0], frames[:, 1])
    np.testing.assert_array_equal(frames[:, 1], frames[:, 2])
    np.testing.assert_array_equal(frames[:, 2], frames[:, 3])
    assert decoded.windows == (Window(0, decoded.media.seconds),)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, -1), lambda image: image[::-1, ::-1]),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda image: image[::-1, ::-1].swapaxes(0, 1)),
    ],
)
def test_frames_are_upright(matrix: tuple[int, ...], turn) -> None:
    """A display matrix (a, b, c, d) takes (x, y) to (ax + cy, bx + dy)."""
    body = encode(count=1)
    upright = with_matrix(body, *matrix)
    (plain,) = decode_all(body)
    (turned,) = decode_all(upright)
    np.testing.assert_array_equal(np.asarray(turned), turn(np.asarray(plain)))
    media = info(prepare(upright, TRANSFORM, LIMITS))
    assert (media.width, media.height) == turned.size


_RED = (200, 40, 60)
_MATRICES = {"bt709": 1, "smpte170m": 6, "bt2020nc": 9}


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv422p10le", "yuvj420p", "gbrp"])
@pytest.mark.parametrize("matrix", _MATRICES)
def test_colours_are_those_of_the_declared_matrix(matrix: str, pix_fmt: str) -> None:
    source = av.VideoFrame.from_ndarray(np.full((48, 64, 3), _RED, np.uint8), format="rgb24")
    space = av.video.reformatter.Colorspace
    spaces = {"bt709": space.ITU709, "smpte170m": space.ITU601, "bt2020nc": space.BT2020}
    full = pix_fmt in ("yuvj420p", "gbrp")
    picture = source.reformat(
        format=pix_fmt, dst_colorspace=spaces[matrix], dst_color_range=2 if full else 1
    )
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264rgb" if pix_fmt == "gbrp" else "libx264", rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "rgb24" if pix_fmt == "gbrp" else pix_fmt
        if pix_fmt != "gbrp":
            stream.codec_context.colorspace = _MATRICES[matrix]
            stream.codec_context.color_range = 2 if full else 1
        stream.options = {"crf": "1"}
        output.mux(stream.encode(source if pix_fmt == "gbrp" else picture))
        output.mux(stream.encode(None))
    (image,) = decode_all(file.getvalue())
    assert np.abs(np.asarray(image).astype(int) - _RED).max() <= 4


def test_an_unknown_matrix_is_bt_601() -> None:
    (frame,) = av.open(io.BytesIO(encode(count=1))).decode(video=0)
    plain = to_image(frame)
    for matrix in (2, 3, 8, 10, 14, 255):
        frame.colorspace = matrix
        assert to_image(frame) == plain


def test_a_still_of_grey() -> None:
    decoded = prepare(repeated(50), replace(TRANSFORM, channels=1), LIMITS)
    assert np.abs(decoded.inputs.astype(int) - 128).max() <= 2


def check_refused(body: bytes, error: type[RequestError], words: str, **limits: Any) -> None:
    with pytest.raises(error, match=words):
        prepare(body, replace(TRANSFORM, stride=1), replace(LIMITS, **limits))


@pytest.mark.parametrize("name", ["h264", "vp8", "av1", "mpeg4"])
def test_limits(name: str) -> None:
    body = video(name)  # 60 frames of 64 x 48 in 2.4 seconds
    check_refused(body, TooLarge, "longer than 2.3 s", max_seconds=2.3)
    check_refused(body, TooLarge, "64 x 48; a side may have 63", max_side=63)
    check_refused(body, TooLarge, "64 x 48, 3072 pixels; allowed are 3071", max_pixels=3071)
    check_refused(body, TooLarge, "more than 24 frames a second", max_frame_rate=24)
    check_refused(body, TooLarge, "more than 59 frames", max_seconds=3, max_frame_rate=19.9)
    check_refused(body, TooLarge, "more than 8 frames of the video", max_frames=8)
    exact = VideoLimits(2.4, 60, 64 * 48, 64, 25, 1)
    assert info(prepare(body, TRANSFORM, exact)).frames == 60


def test_windows_are_limited() -> None:
    with pytest.raises(TooLarge, match="clips times crops are 18; allowed are 16"):
        prepare(BODY, replace(TRANSFORM, clips=6, crops=3), LIMITS)


def test_frames_are_counted_where_packets_hide_how_many_there_are() -> None:
    for name in INEXACT:
        check_refused(video(name), TooLarge, "more than 50 frames of the video", max_frames=50)


@pytest.mark.parametrize("name", INEXACT)
def test_what_was_decoded_in_vain_is_freed_first(name: str) -> None:
    transform = replace(TRANSFORM, frames=16, height=224, width=224, resize=224)
    body = video(name)
    tracemalloc.start()
    decoded = prepare(body, transform, LIMITS)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1.5 * decoded.inputs.nbytes


def test_frames_without_times() -> None:
    """All have the same time, so that they cannot be told from each other."""
    body = seeds()["VP8"]
    packets = [(data, 0, number % 10 == 0) for number, data in enumerate(packets_of(body))]
    same = remux(packets, body)
    decoded = prepare(same, TRANSFORM, LIMITS)
    np.testing.assert_array_equal(decoded.inputs, expected_inputs(body, TRANSFORM))
    assert info(decoded).frames == 30


def test_damage_where_nothing_is_decoded_does_not_matter() -> None:
    body = video("vp8")
    packets = packets_of(body)
    for damaged, is_read in ((3, False), (27, True)):
        parts = [
            (bytes(20) if number == damaged else data, 40 * number, number % 10 == 0)
            for number, data in enumerate(packets)
        ]
        mended = remux(parts, body)
        if is_read:
            check_refused(mended, BadMedia, "corrupt")
        else:
            prepare(mended, TRANSFORM, LIMITS)


def test_the_video_of_the_warm_up() -> None:
    decoded = prepare(BODY, WARM_UP, LIMITS)
    media = info(decoded)
    assert (media.frames, media.width, media.codec) == (2, 16, "vp8")
    assert len(decoded.inputs) == 3

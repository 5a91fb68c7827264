"""Which frames the clips of a video take."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.media.transforms import VideoTransform
from server.video.sampling import sample

TRANSFORM = VideoTransform(frames=16, tubelet=2, height=8, width=8, resize=8)

transforms = st.builds(
    VideoTransform,
    frames=st.integers(1, 64),
    tubelet=st.just(1),
    height=st.just(8),
    width=st.just(8),
    resize=st.just(8),
    sampling=st.sampled_from(("stride", "uniform")),
    stride=st.integers(1, 64),
    clips=st.integers(1, 16),
)
totals = st.integers(1, 10_000)


@given(totals, transforms)
def test_clips_have_frames_of_the_video_in_order(total: int, transform: VideoTransform) -> None:
    clips = sample(total, transform)
    assert len(clips) == transform.clips
    for clip in clips:
        assert len(clip) == transform.frames
        assert list(clip) == sorted(clip)
        assert clip[0] >= 0
        assert clip[-1] < total
    assert [clip[0] for clip in clips] == sorted(clip[0] for clip in clips)


@given(totals, transforms)
def test_strides_are_kept_where_the_video_is_long_enough(
    total: int, transform: VideoTransform
) -> None:
    transform = replace(transform, sampling="stride")
    for clip in sample(total, transform):
        for step, frame in enumerate(clip):
            assert frame == min(clip[0] + step * transform.stride, total - 1)


@given(totals, transforms)
def test_clips_reach_from_the_start_to_the_end(total: int, transform: VideoTransform) -> None:
    transform = replace(transform, sampling="stride", clips=max(transform.clips, 2))
    clips = sample(total, transform)
    span = transform.frames * transform.stride
    assert clips[0][0] == 0
    assert clips[-1][0] == max(total - span, 0)
    gaps = {after[0] - before[0] for before, after in itertools.pairwise(clips)}
    assert max(gaps) - min(gaps) <= 1


@given(totals, transforms)
def test_each_segment_has_one_frame(total: int, transform: VideoTransform) -> None:
    transform = replace(transform, sampling="uniform")
    for clip in sample(total, transform):
        for segment, frame in enumerate(clip):
            # The segment in units of a frame, whose borders may lie within frames.
            assert segment * total // transform.frames <= frame
            assert frame < (segment + 1) * total / transform.frames


@given(totals, st.integers(1, 64))
def test_one_clip_lies_in_the_middle(total: int, stride: int) -> None:
    (clip,) = sample(total, replace(TRANSFORM, stride=stride))
    before = clip[0]
    after = total - (clip[0] + TRANSFORM.frames * stride)
    if after >= 0:
        assert after - before in (0, 1)
    else:
        assert before == 0


def test_a_short_video_repeats_its_last_frame() -> None:
    assert sample(10, TRANSFORM) == [(0, 4, 8, *[9] * 13)]
    assert sample(1, TRANSFORM) == [(0,) * 16]


@pytest.mark.parametrize("total", [16, 17, 100, 251])
def test_two_clips_of_segments_are_those_of_videomae(total: int) -> None:
    """Its test set of Something-Something: starts of 16 segments, and their middles."""
    tick = total / 16
    starts = tuple(int(tick * number) for number in range(16))
    middles = tuple(int(tick / 2 + tick * number) for number in range(16))
    uniform = replace(TRANSFORM, sampling="uniform")
    assert sample(total, replace(uniform, clips=2)) == [starts, middles]
    assert sample(total, uniform) == [middles]

"""Where the windows of a sound lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.audio.fbank import FRAME_SAMPLES, HOP_SAMPLES, count_frames
from server.audio.windows import cut
from server.errors import TooLarge


@given(samples=st.integers(0, 200_000), frames=st.integers(1, 200))
def test_windows_cover_every_frame(samples: int, frames: int) -> None:
    spans = cut(samples, frames, max_windows=10_000)
    total = count_frames(samples)
    assert len(spans) == max(1, -(-total // frames))
    if len(spans) == 1:
        assert spans == [slice(0, samples)]
        return
    assert all(count_frames(span.stop - span.start) == frames for span in spans)
    starts = [span.start for span in spans]
    regular = [index * frames * HOP_SAMPLES for index in range(len(spans) - 1)]
    assert starts[:-1] == regular
    assert starts[-1] == (total - frames) * HOP_SAMPLES
    assert 0 <= samples - spans[-1].stop < HOP_SAMPLES


def test_a_sound_of_exactly_two_windows() -> None:
    samples = (2 * 128 - 1) * HOP_SAMPLES + FRAME_SAMPLES
    first, second = cut(samples, 128, max_windows=2)
    assert second.start - first.start == 128 * HOP_SAMPLES
    assert second.stop == samples


def test_too_many_windows() -> None:
    samples = 2 * 128 * HOP_SAMPLES + FRAME_SAMPLES
    with pytest.raises(TooLarge, match=r"longer than 2\.56 s.*2 windows of 1\.28 s") as refused:
        cut(samples, 128, max_windows=2)
    assert refused.value.extensions["limit"] == 2.56
    assert len(cut(samples - HOP_SAMPLES, 128, max_windows=2)) == 2

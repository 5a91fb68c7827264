"""Cut a sound into windows of the model's length."""

from __future__ import annotations

from server.audio.fbank import FRAME_SAMPLES, HOP_SAMPLES, SAMPLE_RATE, count_frames
from server.errors import TooLarge


def window_seconds(frames: int) -> float:
    """Return the seconds from one window of ``frames`` frames to the next."""
    return frames * HOP_SAMPLES / SAMPLE_RATE


def cut(samples: int, frames: int, max_windows: int) -> list[slice]:
    """Return where the windows of ``frames`` frames lie in a sound of ``samples`` samples.

    They do not overlap, but for the last one, which is aligned to the last frame of the sound. A
    sound shorter than one window is one window, and shorter than the others.

    Raises:
        TooLarge: there are more than ``max_windows``.
    """
    total = count_frames(samples)
    if total > max_windows * frames:
        seconds = window_seconds(frames)
        allowed = max_windows * seconds
        raise TooLarge(
            f"the sound is longer than {allowed:g} s, the longest that this model takes:"
            f" {max_windows} windows of {seconds:g} s",
            limit=allowed,
        )
    if total <= frames:
        return [slice(0, samples)]
    last = total - frames
    starts = [*range(0, last, frames), last]
    length = (frames - 1) * HOP_SAMPLES + FRAME_SAMPLES
    return [slice(start * HOP_SAMPLES, start * HOP_SAMPLES + length) for start in starts]

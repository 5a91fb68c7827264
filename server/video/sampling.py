"""Which frames of a video its clips take."""

from __future__ import annotations

from server.media.transforms import VideoTransform

Clip = tuple[int, ...]
"""The numbers of a clip's frames, ascending: from 0 on, in the order in which they are shown."""


def sample(total: int, transform: VideoTransform) -> list[Clip]:
    """Return the clips that ``transform`` takes of a video of ``total`` frames, at least 1."""
    if transform.sampling == "uniform":
        return [_one_of_each_segment(total, clip, transform) for clip in range(transform.clips)]
    return [_every_few(total, clip, transform) for clip in range(transform.clips)]


def _every_few(total: int, clip: int, transform: VideoTransform) -> Clip:
    """Return every ``stride``-th frame from where ``clip`` starts.

    One clip lies in the middle. Several are spread evenly from the start of the video to its end,
    and overlap in a short one, as in the evaluation of VideoMAE (arXiv 2203.12602, section 4.2) and
    ViViT (arXiv 2103.15691, section 4.1) on Kinetics. A video that is shorter than a clip repeats
    its last frame.
    """
    last_start = max(total - transform.frames * transform.stride, 0)
    if transform.clips == 1:
        start = last_start // 2
    else:
        start = last_start * clip // (transform.clips - 1)
    return tuple(
        min(start + step * transform.stride, total - 1) for step in range(transform.frames)
    )


def _one_of_each_segment(total: int, clip: int, transform: VideoTransform) -> Clip:
    """Return one frame of each of ``frames`` equal segments (TSN, arXiv 1608.00859, section 3.2).

    One clip takes the middle of each segment. Clip ``i`` of ``k`` takes what lies ``i / k`` behind
    the start of each: so do the two clips of VideoMAE on Something-Something.
    """
    parts = 2 * transform.clips  # of a segment
    part = 1 if transform.clips == 1 else 2 * clip
    return tuple(
        total * (segment * parts + part) // (transform.frames * parts)
        for segment in range(transform.frames)
    )

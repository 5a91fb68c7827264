"""From an encoded video to a model's inputs: read, sample, decode, resize and crop."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict

import numpy as np
from av.error import FFmpegError

from server.errors import BadMedia, RequestError
from server.media.decoded import Decoded, VideoInfo, Window
from server.media.limits import VideoLimits
from server.media.transforms import VideoTransform
from server.video.counts import check_duration, check_windows
from server.video.crops import cut_crops
from server.video.frames import CountedFrames, Frames, SoughtFrames
from server.video.pixels import to_image
from server.video.sampling import Clip, sample
from server.video.stream import Stream, open_stream
from server.video.timeline import Inexact

log = logging.getLogger("tome.decode")

# More than FFmpeg allocates at a time for a frame of the largest size.
_SPARE_BYTES = 100_000_000


def prepare(body: bytes, transform: VideoTransform, limits: VideoLimits) -> Decoded:
    """Return the model's inputs for the encoded video ``body``, one for each crop of each clip.

    Raises:
        BadMedia: the video is empty, corrupt or truncated, or changes its resolution.
        UnsupportedFormat: it is in none of `server.video.formats.FORMATS`, encrypted, or has a
            codec that is not decoded.
        TooLarge: it exceeds a limit.
        MemoryError: it takes more memory than this process may have.
    """
    if not body:
        raise BadMedia("the body is empty; send a video file")
    check_windows(transform.clips * transform.crops, limits)
    try:
        with open_stream(body, limits) as stream:
            return _prepare(stream, transform, limits)
    except RequestError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) and _is_memory_short(error):
            raise
        # FFmpeg's errors are of many types. Their texts are not for clients.
        log.debug("cannot decode a video: %r", error)
        raise BadMedia("the video is corrupt or truncated") from None


def _is_memory_short(error: MemoryError) -> bool:
    """Return whether that is why ``error`` was raised: FFmpeg raises it for absurd sizes as well.

    The decoder's own memory is not free yet: the traceback refers to it.
    """
    if not isinstance(error, FFmpegError):
        return True
    try:
        np.empty(_SPARE_BYTES, np.uint8)
    except MemoryError:
        return True
    return False


def _prepare(stream: Stream, transform: VideoTransform, limits: VideoLimits) -> Decoded:
    # Not in a handler, whose exception would hold the inputs of the first attempt.
    with contextlib.suppress(Inexact):
        return _take(SoughtFrames(stream, limits), stream.codec, transform, limits)
    return _take(CountedFrames(stream, limits), stream.codec, transform, limits)


def _take(
    frames: Frames,
    codec: str,
    transform: VideoTransform,
    limits: VideoLimits,
) -> Decoded:
    """Fill the inputs frame by frame: one at a time is in memory as RGB."""
    total = len(frames.starts)
    check_duration(total, frames.seconds, limits)
    clips = sample(total, transform)
    places = defaultdict(list)
    for clip, numbers in enumerate(clips):
        for position, number in enumerate(numbers):
            places[number].append((clip, position))
    inputs = np.empty((len(clips) * transform.crops, *transform.size), np.uint8)
    # (clips, crops, C, T, H, W)
    by_place = inputs.reshape(
        len(clips),
        transform.crops,
        transform.channels,
        transform.frames,
        transform.height,
        transform.width,
    )
    wanted = sorted(places)
    width, height = 0, 0
    for number, frame in zip(wanted, frames.read(wanted), strict=True):
        image = to_image(frame)
        width, height = image.size
        for crop, pixels in enumerate(cut_crops(image, transform)):
            for clip, position in places[number]:
                by_place[clip, crop, :, position] = pixels
    info = VideoInfo(
        seconds=frames.seconds,
        frames=total,
        frame_rate=total / frames.seconds,
        width=width,
        height=height,
        codec=codec,
    )
    return Decoded(inputs, _windows(frames, clips, transform), info)


def _windows(
    frames: Frames,
    clips: list[Clip],
    transform: VideoTransform,
) -> tuple[Window, ...]:
    """Return where each input lies: from its first frame's start to its last frame's end."""
    ends = [*frames.starts[1:], frames.seconds]
    return tuple(
        Window(frames.starts[clip[0]], ends[clip[-1]], crop)
        for clip in clips
        for crop in range(transform.crops)
    )

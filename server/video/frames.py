"""The frames of a video by their number: where the packets tell it, only what is needed is decoded.

Elsewhere, all frames are decoded twice: to count them, and to take those that are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

from av.video.frame import VideoFrame

from server.errors import BadMedia
from server.media.limits import VideoLimits
from server.video.counts import check_decoded
from server.video.decoder import Decoder, check_whole
from server.video.stream import Stream
from server.video.timeline import Inexact, Run, Timeline

_UNKNOWN_RATE = 25.0  # frames a second, where a file says nothing at all


class Frames(Protocol):
    """All frames of a video, in the order in which they are shown.

    Attributes:
        starts: when each is shown, in seconds after the first.
        seconds: the duration of the video.
    """

    starts: Sequence[float]
    seconds: float

    def read(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """Yield the frames of the numbers ``wanted``, ascending.

        Raises:
            Inexact: they cannot be told from others.
            RequestError: as those of `server.video.decoder.Decoder.decode`.
        """


class SoughtFrames:
    """Frames that are decoded from the keyframe before each of them.

    Raises:
        Inexact: the packets do not tell which frames there are.
    """

    def __init__(self, stream: Stream, limits: VideoLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._timeline = Timeline(stream.packets, stream.codec)
        self._decoder = Decoder(stream, limits)
        times = self._timeline.times
        ticks = self._timeline.last_ticks
        self.starts: Sequence[float] = [
            (time - times[0]) * stream.seconds_per_tick for time in times
        ]
        self.seconds = end_of(self.starts, ticks * stream.seconds_per_tick, stream.frame_rate)

    def read(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """See `Frames.read`."""
        runs = self._timeline.plan(wanted)
        check_decoded(sum(run.packets for run in runs), self._limits)
        for run in runs:
            yield from self._read_run(run)

    def _read_run(self, run: Run) -> Iterator[VideoFrame]:
        """Yield the frames of ``run``, if all come that its packets promise."""
        number = run.first
        wanted = set(run.wanted)
        for frame in self._decoder.decode(self._stream.packets[run.packet :]):
            is_before = frame.pts is not None and frame.pts < self._timeline.times[run.first]
            if is_before and run.packet and number == run.first:
                continue
            starts_wrong = run.packet and number == run.first and not frame.key_frame
            if starts_wrong or frame.pts != self._timeline.times[number]:
                raise Inexact
            check_whole(frame)
            if number in wanted:
                yield frame
            if number == run.wanted[-1]:
                return
            number += 1
        raise Inexact


class CountedFrames:
    """Frames that are numbered as they are decoded, from the first on.

    Raises:
        RequestError: as those of `server.video.decoder.Decoder.decode`.
    """

    def __init__(self, stream: Stream, limits: VideoLimits) -> None:
        self._stream = stream
        self._limits = limits
        times: list[int | None] = []
        ticks = 0
        for frame in self._decode():
            check_whole(frame)
            times.append(frame.pts)
            ticks = frame.duration
        if not times:
            raise BadMedia("the video has no frames")
        self.starts: Sequence[float] = _starts(times, stream)
        self.seconds = end_of(self.starts, ticks * stream.seconds_per_tick, stream.frame_rate)

    def read(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """See `Frames.read`."""
        numbers = set(wanted)
        for number, frame in enumerate(self._decode()):
            if number in numbers:
                yield frame
            if number == wanted[-1]:
                return

    def _decode(self) -> Iterator[VideoFrame]:
        """Decode the whole video from its beginning."""
        return Decoder(self._stream, self._limits).decode(self._stream.packets)


def _starts(times: Sequence[int | None], stream: Stream) -> list[float]:
    """Return when each frame is shown, in seconds after the first.

    Frames without times, or whose times do not ascend, come at the declared frame rate.
    """
    known = [time for time in times if time is not None]
    if len(known) == len(times) and all(a < b for a, b in pairwise(known)):
        return [(time - known[0]) * stream.seconds_per_tick for time in known]
    rate = stream.frame_rate or _UNKNOWN_RATE
    return [number / rate for number in range(len(times))]


def end_of(starts: Sequence[float], last: float, frame_rate: float) -> float:
    """Return when a video ends whose frames are shown from ``starts`` on, in seconds.

    Args:
        last: how long the last one is shown, or 0 where the file does not say: then as long as
            the others on average, or one alone as ``frame_rate`` says.
    """
    if last > 0:
        return starts[-1] + last
    if len(starts) > 1:
        return starts[-1] * len(starts) / (len(starts) - 1)
    return 1 / (frame_rate or _UNKNOWN_RATE)

"""Decode packets into frames, and check what comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from server.errors import BadMedia
from server.media.limits import VideoLimits
from server.video.counts import check_decoded, check_size
from server.video.stream import Stream


def check_whole(frame: VideoFrame) -> None:
    """Refuse a frame of which the decoder has made up a part. Raises `BadMedia`."""
    if frame.is_corrupt:
        raise BadMedia("the video is corrupt or truncated")


class Decoder:
    """Decodes the packets of ``stream``, and counts the frames."""

    def __init__(self, stream: Stream, limits: VideoLimits) -> None:
        self._context = stream.context
        self._limits = limits
        self._size: tuple[int, int] | None = None
        self._frames = 0

    def decode(self, packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Yield the frames of ``packets``, as their first packet was the first of the video.

        Raises:
            BadMedia: a frame has another size than those before it.
            TooLarge: a frame is too large, or there are too many.
            Exception: those of FFmpeg, by which a packet is corrupt.
        """
        self._context.flush_buffers()
        for packet in chain(packets, [None]):
            for frame in self._context.decode(packet):
                self._check(frame)
                yield frame

    def _check(self, frame: VideoFrame) -> None:
        self._frames += 1
        check_decoded(self._frames, self._limits)
        size = (frame.width, frame.height)
        if self._size is None:
            check_size(*size, self._limits)
            self._size = size
        if size != self._size:
            raise BadMedia("the video changes its resolution; send one that does not")

"""Open a video with FFmpeg's demuxer that our own look at it names, and read its packets.

FFmpeg sees bytes in memory and nothing else. It guesses no format, so that no playlist names files
or addresses; it follows no reference to other files; and no codec beyond `CODECS` is opened, by
the demuxer either, which decodes some frames where a header leaves something open.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from server.errors import BadMedia, UnsupportedFormat
from server.media.limits import VideoLimits
from server.video.counts import check_packets, check_size
from server.video.formats import SUPPORTED, find_demuxer

# By FFmpeg's name of the decoder.
CODECS = {
    "h264": "h264",
    "hevc": "hevc",
    "vp8": "vp8",
    "vp9": "vp9",
    "libdav1d": "av1",
    "mpeg4": "mpeg4",
}
# Decoders count what they allocate: sides that are multiples of 64, and that of MPEG-4 a scratch
# picture of 280 rows.
_MARGIN = 128
_SCRATCH_ROWS = 280
# Compression of headers in Matroska adds a few bytes to each packet.
_MAX_EXPANSION = 2


@dataclass(frozen=True)
class Stream:
    """The video of a file.

    Attributes:
        codec: one of the values of `CODECS`.
        context: its decoder, not open yet.
        packets: those from the first keyframe on that have data, in the order of decoding.
        seconds_per_tick: the unit of their times.
        frame_rate: that the file declares, or 0.
    """

    codec: str
    context: VideoCodecContext
    packets: list[Packet[VideoStream]]
    seconds_per_tick: float
    frame_rate: float


@contextmanager
def open_stream(body: bytes, limits: VideoLimits) -> Iterator[Stream]:
    """Open the first video in ``body``, or the one that is marked as the default.

    Raises:
        UnsupportedFormat: ``body`` is in none of the formats, encrypted, or its codec is not
            decoded.
        BadMedia: it is truncated, or has no video.
        TooLarge: its frames are too large or too many.
        Exception: those of FFmpeg, by which it is corrupt.
    """
    demuxer = find_demuxer(body)
    # For the demuxer, which passes them on to the decoders that it opens itself.
    options = {
        "codec_whitelist": ",".join(CODECS),
        "max_pixels": _max_pixels(limits),
        "threads": "1",
        "enable_drefs": "0",
    }
    with av.open(
        io.BytesIO(body),
        mode="r",
        format=demuxer,
        options=options,
        io_open=_refuse,
    ) as container:
        video = _choose(container)
        codec, context = _check_codec(video)
        check_size(context.width, context.height, limits)
        context.thread_type = "NONE"
        context.thread_count = 1
        context.options = {"max_pixels": _max_pixels(limits)}
        packets = _from_keyframe(list(_read_packets(container, video, len(body), limits)))
        if not packets:
            raise BadMedia("the video has no frames")
        tick = video.time_base
        rate = video.average_rate
        yield Stream(codec, context, packets, float(tick or 0), float(rate or 0))


def _max_pixels(limits: VideoLimits) -> str:
    """Return the most pixels of a frame as an option of a decoder, which counts a few more.

    It ends the decoding before memory is allocated. The exact limit is checked on frames.
    """
    rounded = limits.max_pixels + _MARGIN * limits.max_side
    scratch = _SCRATCH_ROWS * (limits.max_side + _MARGIN)
    return str(max(rounded, scratch))


def _refuse(*_: Any) -> NoReturn:
    """Open none of the files that a video names."""
    raise PermissionError


def _choose(container: InputContainer) -> VideoStream:
    """Return the video to decode; pictures of a cover are none."""
    videos = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not videos:
        what = "sound, but no video" if container.streams.audio else "no video"
        raise BadMedia(f"the file has {what}")
    defaults = [stream for stream in videos if stream.disposition & Disposition.default]
    return (defaults or videos)[0]


def _check_codec(video: VideoStream) -> tuple[str, VideoCodecContext]:
    """Return the codec's name and its decoder, or raise `UnsupportedFormat`."""
    context: VideoCodecContext | None = video.codec_context
    name = context.name if context else "an unknown codec"
    if context is None or name not in CODECS:
        raise UnsupportedFormat(f"the video is of {name}, which is not supported; {SUPPORTED}")
    return CODECS[name], context


def _read_packets(
    container: InputContainer,
    video: VideoStream,
    body_bytes: int,
    limits: VideoLimits,
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets that have data: to the decoder, one without says that the video ends.

    A packet is a copy. An index that names the same bytes again and again is refused before the
    copies take much memory.
    """
    copied = 0
    for count, packet in enumerate(container.demux(video)):
        check_packets(count, limits)
        copied += packet.size
        if copied > _MAX_EXPANSION * body_bytes:
            raise BadMedia("the video is corrupt: its frames are larger than the file")
        if packet.has_sidedata("encryption_info"):
            raise UnsupportedFormat("the video is encrypted; send one that is not")
        if packet.size:
            yield packet


def _from_keyframe(packets: list[Packet[VideoStream]]) -> list[Packet[VideoStream]]:
    """Return ``packets`` without those before the first keyframe, of a recording that was cut.

    What they refer to is missing. Where none is a keyframe, all are returned.
    """
    starts = (number for number, packet in enumerate(packets) if packet.is_keyframe)
    return packets[next(starts, 0) :]

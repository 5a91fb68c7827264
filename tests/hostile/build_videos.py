"""Building blocks of video files, most of which no encoder writes."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition
from av.video.stream import VideoStream

SIZE = (64, 48)  # width and height, where nothing else is said

_FAST = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
}


def pictures(count: int, size: tuple[int, int] = SIZE) -> Iterator[np.ndarray]:
    """Gradients that move, each with its number as the grey of its upper left corner."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    for number in range(count):
        channels = (x + 3 * number, 2 * y + 5 * number, x + y)
        picture = np.stack(channels, axis=-1).astype(np.uint8)
        picture[:16, :16] = 16 + 3 * number % 224
        yield picture


@contextmanager
def kept_priority() -> Iterator[None]:
    """Leave this thread with the scheduling policy that it has.

    Where root runs it, SVT-AV1 gives the thread that opens it the highest real-time priority. All
    processes that the thread starts from then on inherit it, and leave the machine no time.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def encode(
    codec: str = "libx264",
    form: str = "mp4",
    count: int = 30,
    size: tuple[int, int] = SIZE,
    rate: float = 25,
    pix_fmt: str = "yuv420p",
    times: Iterable[int] | None = None,
    container: dict[str, str] | None = None,
    frames: Iterable[np.ndarray] | None = None,
    **options: object,
) -> bytes:
    """A video of `pictures`, or of ``frames``.

    Args:
        times: of the frames, in units of ``1 / rate`` seconds; default: 0, 1, 2.
        container: options of the muxer.
        options: of the encoder; underscores stand for hyphens.
    """
    file = io.BytesIO()
    given: dict[str, str] = {name.replace("_", "-"): str(value) for name, value in options.items()}
    with kept_priority(), av.open(file, "w", format=form, options=container or {}) as output:
        stream = output.add_stream(codec, rate=Fraction(rate).limit_denominator(1000))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.options = {**_FAST.get(codec, {}), **given}
        stream.codec_context.thread_count = 1
        source = pictures(count, size) if frames is None else frames
        for number, picture in zip(times or range(count), source, strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            frame.time_base = 1 / Fraction(rate).limit_denominator(1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def sound(form: str = "mp4") -> bytes:
    """A file with a tenth of a second of AAC and nothing else."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as output:
        stream = output.add_stream("aac", rate=16_000)
        for number in range(2):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16_000
            frame.pts = 1024 * number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def remux(
    packets: Iterable[tuple[bytes, int, bool]],
    like: bytes,
    form: str = "webm",
    milliseconds: int = 1,
) -> bytes:
    """A file of ``packets`` (data, time, whether it is a keyframe) with the header of ``like``."""
    file = io.BytesIO()
    with av.open(io.BytesIO(like), "r") as source, av.open(file, "w", format=form) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for data, time, is_keyframe in packets:
            packet = av.Packet(data)
            packet.stream = stream
            packet.time_base = Fraction(milliseconds, 1000)
            packet.pts = packet.dts = time
            packet.is_keyframe = is_keyframe
            output.mux(packet)
    return file.getvalue()


def together(*bodies: bytes, form: str = "matroska", flags: tuple[int, ...] = ()) -> bytes:
    """A file with the streams of all ``bodies``; ``flags`` are their dispositions."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as output:
        sources = [av.open(io.BytesIO(body), "r") for body in bodies]
        streams = [output.add_stream_from_template(source.streams[0]) for source in sources]
        for stream, flag in zip(streams, flags, strict=False):
            stream.disposition = Disposition(flag)
        for source, stream in zip(sources, streams, strict=True):
            for packet in source.demux(source.streams[0]):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
            source.close()
    return file.getvalue()


def without_first(body: bytes, count: int, form: str) -> bytes:
    """A video without its first ``count`` packets, as a recording that was cut."""
    file = io.BytesIO()
    with av.open(io.BytesIO(body), "r") as source, av.open(file, "w", format=form) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= count:
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def packets_of(body: bytes) -> list[bytes]:
    """The data of the packets of its video."""
    with av.open(io.BytesIO(body), "r") as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def repeated(count: int, size: tuple[int, int] = SIZE, milliseconds: int = 40) -> bytes:
    """A still of VP8: one keyframe, and one frame that changes nothing, again and again."""
    grey = np.full((size[1], size[0], 3), 128, np.uint8)
    still = encode("libvpx", "webm", 2, size, frames=[grey, grey])
    key, unchanged = packets_of(still)
    packets = [(unchanged if number else key, number, not number) for number in range(count)]
    return remux(packets, still, milliseconds=milliseconds)


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def boxes(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the boxes that ``body`` consists of."""
    start = 0
    while start < len(body):
        size, name = struct.unpack_from(">I4s", body, start)
        yield name, body[start + 8 : start + size]
        start += size


def edit(body: bytes, path: str, change, skip: int = 0) -> bytes:
    """An MP4 whose boxes at ``path`` (such as ``moov/trak``) have other contents.

    Its samples must lie before its ``moov``, as those of `encode` do.

    Args:
        change: returns the new content of a box for the old one, or a list of contents, of
            as many boxes.
        skip: bytes of ``body`` before its first box.
    """
    first, _, rest = path.partition("/")
    parts = [body[:skip]]
    for name, content in boxes(body[skip:]):
        if name != first.encode():
            parts.append(box(name, content))
            continue
        if rest:
            # The description of samples begins with a count.
            changed = edit(content, rest, change, skip=8 if name == b"stsd" else 0)
        else:
            changed = change(content)
        contents = changed if isinstance(changed, list) else [changed]
        parts += [box(name, one) for one in contents]
    return b"".join(parts)


def overwrite(body: bytes, path: str, offset: int, data: bytes) -> bytes:
    """An MP4 whose box at ``path`` has ``data`` at ``offset`` of its content."""
    return edit(body, path, lambda old: old[:offset] + data + old[offset + len(data) :])


_TABLE = "moov/trak/mdia/minf/stbl"


def with_matrix(body: bytes, *matrix: int) -> bytes:
    """An MP4 whose display matrix has the upper left part ``matrix``, of four numbers."""
    a, b, c, d = (number << 16 for number in matrix)
    data = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return overwrite(body, "moov/trak/tkhd", 40, data)


def that_declares_size(body: bytes, width: int, height: int) -> bytes:
    """An MP4 of H.264 whose headers say another size than its frames have."""
    track = struct.pack(">II", width << 16, height << 16)
    entry = struct.pack(">HH", width, height)
    body = overwrite(body, "moov/trak/tkhd", 76, track)
    return overwrite(body, f"{_TABLE}/stsd/avc1", 24, entry)


def that_declares_duration(body: bytes, duration: int) -> bytes:
    """An MP4 that says another duration, in its units."""
    data = struct.pack(">I", duration)
    for path, offset in (("moov/mvhd", 16), ("moov/trak/mdia/mdhd", 16), ("moov/trak/tkhd", 20)):
        body = overwrite(body, path, offset, data)
    return body


def with_table(body: bytes, name: str, *numbers: int) -> bytes:
    """An MP4 whose table ``name`` of samples is ``numbers`` of 4 bytes, after its version."""
    content = bytes(4) + struct.pack(f">{len(numbers)}I", *numbers)
    return edit(body, f"{_TABLE}/{name}", lambda _: content)


def with_reference(body: bytes, name: bytes, address: bytes) -> bytes:
    """An MP4 that says that its samples lie at ``address``."""
    reference = bytes(4) + struct.pack(">I", 1) + box(name, bytes(4) + address)
    return edit(body, "moov/trak/mdia/minf/dinf/dref", lambda _: reference)


def alias(path: bytes) -> bytes:
    """A reference to a file, as QuickTime wrote it: one folder up and one down, and a path."""
    head = bytes(130) + struct.pack(">HH", 1, 1) + bytes(16)
    return head + struct.pack(">HH", 2, len(path)) + path + b"\xff\xff\0\0"


def with_tracks(body: bytes, count: int) -> bytes:
    """An MP4 that has its track ``count`` times."""
    return edit(body, "moov/trak", lambda track: [track] * count)


def index_first(body: bytes) -> bytes:
    """An MP4 whose ``moov`` lies before its samples."""
    start = body.index(b"moov") - 4
    index = body[start:]

    def shift(table: bytes) -> bytes:
        offsets = np.frombuffer(table[8:], ">u4") + len(index)
        return table[:8] + offsets.astype(">u4").tobytes()

    first, rest = body[:32], body[32:start]
    return first + edit(index, f"{_TABLE}/stco", shift) + rest


def element(identifier: int, content: bytes) -> bytes:
    """An element of Matroska, whose size is written in 8 bytes."""
    name = identifier.to_bytes((identifier.bit_length() + 7) // 8, "big")
    return name + struct.pack(">Q", 1 << 56 | len(content)) + content


def ebml_header(document_type: bytes) -> bytes:
    return element(0x1A45DFA3, element(0x4282, document_type))

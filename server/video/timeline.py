"""When each frame of a video is shown, and from which packet on it can be decoded.

A packet has one frame. Its times tell where that comes in the order of showing, before anything is
decoded; the decoding checks it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from av.packet import Packet
from av.video.stream import VideoStream

# How far back the keyframe of a frame is looked for. The one before the last suffices, but for
# files that are made to take long.
_MAX_KEYFRAMES_BACK = 4
# Fewer packets than these between two needed parts are decoded: a decoder that starts anew needs
# as many, in the worst case, before it gives out a frame.
_MIN_GAP = 8


class Inexact(Exception):
    """The times of the packets do not tell which frames there are."""


@dataclass(frozen=True)
class Run:
    """Frames that are decoded in one go.

    Attributes:
        packet: the number of the first packet to decode.
        first: the number of the first frame that comes from there on; earlier ones may come too,
            and are not complete.
        wanted: the numbers of the frames to take, ascending.
        packets: how many packets that takes, at least.
    """

    packet: int
    first: int
    wanted: tuple[int, ...]
    packets: int


class Timeline:
    """The frames of ``packets`` in the order in which they are shown.

    Raises:
        Inexact: a packet has no time, or that of another one, or is shown before the first that is
            decoded: what it refers to may be missing.

    Attributes:
        times: of the frames, ascending, in the unit of the packets.
        last_ticks: how long the last frame is shown, or 0 where the file does not say.
    """

    def __init__(self, packets: Sequence[Packet[VideoStream]], codec: str) -> None:
        self._packets = packets
        shown = {
            packet.pts: number
            for number, packet in enumerate(packets)
            if packet.pts is not None and _is_shown(packet, codec)
        }
        if len(shown) != sum(_is_shown(packet, codec) for packet in packets) or not shown:
            raise Inexact
        self.times: list[int] = sorted(shown)
        if packets[0].pts is None or self.times[0] < packets[0].pts:
            raise Inexact
        self.last_ticks: int = packets[shown[self.times[-1]]].duration or 0
        self._numbers = [shown[time] for time in self.times]
        self._starts = [start for _, start in sorted(_starts(packets, shown))]

    def plan(self, wanted: Sequence[int]) -> list[Run]:
        """Return how to decode the frames of the numbers ``wanted``, ascending."""
        runs: list[Run] = []
        for frame in wanted:
            start, needed = self._starts[frame], self._numbers[frame]
            if runs and start < runs[-1].packet + runs[-1].packets + _MIN_GAP:
                run = runs.pop()
                packets = max(run.packets, needed + 1 - run.packet)
                runs.append(Run(run.packet, run.first, (*run.wanted, frame), packets))
            else:
                runs.append(Run(start, self._first_frame(start), (frame,), needed + 1 - start))
        return runs

    def _first_frame(self, start: int) -> int:
        """Return the number of the first frame that is complete if decoded from ``start`` on."""
        time = self._packets[start].pts
        return bisect_left(self.times, time) if start and time is not None else 0


def _starts(
    packets: Sequence[Packet[VideoStream]], shown: dict[int, int]
) -> Iterator[tuple[int, int]]:
    """Yield the time of each frame, and the number of the keyframe's packet that it needs.

    It is the last keyframe before it in both orders, of decoding and of showing. A frame that is
    decoded after a keyframe but shown before it may need what came before that (an open GOP).
    """
    keyframes: list[tuple[int, int]] = []
    for number, packet in enumerate(packets):
        time = packet.pts
        if time is None:
            continue
        if packet.is_keyframe:
            keyframes.append((number, time))
        if shown.get(time) == number:
            recent = keyframes[: -_MAX_KEYFRAMES_BACK - 1 : -1]
            yield time, next((key for key, key_time in recent if key_time <= time), 0)


def _is_shown(packet: Packet[VideoStream], codec: str) -> bool:
    """Return whether the frame of ``packet`` is shown: an edit list or its own header may say no.

    VP8 and VP9 have frames that only others refer to (RFC 6386, section 9.1; VP9 bitstream
    specification 0.6, section 6.2). In VP9 such a frame mostly shares its packet with the next one.
    """
    if packet.is_discard:
        return False
    data = memoryview(packet)
    if codec == "vp8":
        return bool(data[0] & 0x10)
    if codec == "vp9":
        is_superframe = data[-1] & 0xE0 == 0xC0
        shows_other = data[0] & 0x08
        is_hidden = not shows_other and not data[0] & 0x02
        has_plain_header = data[0] & 0xF0 in (0x80, 0x90, 0xA0)  # profiles 0 to 2
        return is_superframe or not (has_plain_header and is_hidden)
    return True

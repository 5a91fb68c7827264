"""Messages between the API process and a decode worker: small JSON, one a datagram.

A worker reads hostile bytes, so that its replies are not trusted either: nothing is unpickled, and
every value is checked against the limits and the transform of the task.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from server.errors import BadMedia, RequestError, TooLarge, UnsupportedFormat
from server.media.decoded import Decoded, MediaInfo, SoundInfo, VideoInfo, Window
from server.media.limits import AudioLimits, MediaLimits, VideoLimits
from server.media.modality import Modality
from server.media.transforms import AudioTransform, MediaTransform, VideoTransform

MAX_BYTES = 1 << 16  # of one message
_MAX_TEXT = 4_000  # characters
_ERRORS: dict[str, type[RequestError]] = {
    error.__name__: error for error in (BadMedia, TooLarge, UnsupportedFormat)
}
# Arguments of `RequestError` and members of every problem, which no worker may set.
_RESERVED = {"detail", "retry_after", "headers", "type", "title", "status", "instance"}
_TRANSFORMS: dict[Modality, type[MediaTransform]] = {
    Modality.AUDIO: AudioTransform,
    Modality.VIDEO: VideoTransform,
}
_LIMITS: dict[Modality, type[MediaLimits]] = {
    Modality.AUDIO: AudioLimits,
    Modality.VIDEO: VideoLimits,
}
# One frame alone may have any duration: FFmpeg's shortest unit of time is 2 ** -31 seconds.
_MOST_FRAMES_A_SECOND = 2.0**31
_CODEC = re.compile(r"[a-z0-9_]{1,32}", re.ASCII)


class BadReply(Exception):
    """The worker has sent something that is no reply to its task."""


class StaleReply(BadReply):
    """The worker has sent one more reply to an earlier task."""


@dataclass(frozen=True)
class Task:
    """What a worker is to do with the body that comes with it.

    Attributes:
        number: by which its reply names it.
        limits: of the modality of ``transform``.
        cpu_seconds: after which the kernel ends the worker.
    """

    number: int
    transform: MediaTransform
    limits: MediaLimits
    cpu_seconds: float

    @property
    def modality(self) -> Modality:
        """What the body is."""
        return self.transform.modality

    @property
    def max_windows(self) -> int:
        """The most windows that the result may have."""
        if isinstance(self.transform, VideoTransform):
            return self.transform.clips * self.transform.crops
        return self.limits.max_windows

    @property
    def result_bytes(self) -> int:
        """The size of these windows."""
        value_bytes = np.dtype(self.transform.dtype).itemsize
        return self.max_windows * math.prod(self.transform.size) * value_bytes

    def pack(self) -> bytes:
        """Return the task as a message."""
        return json.dumps(asdict(self) | {"modality": self.modality}).encode()

    @classmethod
    def unpack(cls, message: bytes) -> Task:
        """Return the task that ``message`` is."""
        fields = json.loads(message)
        modality = Modality(fields["modality"])
        return cls(
            fields["number"],
            _TRANSFORMS[modality](**fields["transform"]),
            _LIMITS[modality](**fields["limits"]),
            fields["cpu_seconds"],
        )


@dataclass(frozen=True)
class Ready:
    """The worker accepts tasks.

    Attributes:
        missing: the confinements that the system does not permit, each with its reason.
    """

    missing: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """The task is done, and the inputs are in the memory for the result.

    Attributes:
        shape: of the inputs, ``(n, C, H, W)``.
    """

    shape: tuple[int, int, int, int]
    windows: tuple[Window, ...]
    media: MediaInfo


@dataclass(frozen=True)
class Refused:
    """The body is refused with ``error``."""

    error: RequestError


@dataclass(frozen=True)
class Failed:
    """The worker could not start or do its task, and ends.

    Attributes:
        text: for the log.
        out_of_memory: whether it had too little.
    """

    text: str
    out_of_memory: bool


Reply = Ready | Done | Refused | Failed


def pack_ready(missing: list[str]) -> bytes:
    """Return a `Ready` as a message."""
    return _pack("ready", missing=missing)


def pack_done(number: int, decoded: Decoded) -> bytes:
    """Return a `Done` to the task ``number`` as a message."""
    return _pack(
        "done",
        task=number,
        shape=list(decoded.inputs.shape),
        windows=[[window.start, window.end, window.crop] for window in decoded.windows],
        media=asdict(decoded.media),
    )


def pack_refused(number: int, error: RequestError) -> bytes:
    """Return a `Refused` to the task ``number`` as a message."""
    return _pack(
        "refused",
        task=number,
        error=type(error).__name__,
        detail=error.detail,
        extensions=error.extensions,
    )


def pack_failed(text: str, *, out_of_memory: bool) -> bytes:
    """Return a `Failed` as a message, with the end of ``text`` if it is long."""
    return _pack("failed", text=text[-_MAX_TEXT:], out_of_memory=out_of_memory)


def _pack(kind: str, **fields: Any) -> bytes:
    return json.dumps({"kind": kind, **fields}).encode()


def unpack_reply(message: bytes, task: Task | None) -> Reply:
    """Return the reply that ``message`` is.

    Args:
        task: to which it replies; None while the worker starts.

    Raises:
        BadReply: it is none, or breaks a limit of the task.
        StaleReply: it is one to an earlier task.
    """
    try:
        fields = json.loads(message)
        return _read_reply(fields, task)
    except BadReply:
        raise
    except Exception as error:  # whatever the values of a hostile worker lead to
        raise BadReply(f"a reply cannot be read: {type(error).__name__}") from error


def _read_reply(fields: Mapping[str, Any], task: Task | None) -> Reply:
    kind = fields["kind"]
    if kind == "failed":
        return Failed(_text(fields["text"]), bool(fields["out_of_memory"]))
    if kind == "ready" and task is None:
        return Ready(tuple(map(_text, fields["missing"])))
    if kind not in ("done", "refused") or task is None:
        raise BadReply("a reply of a kind that is not expected")
    if _whole(fields["task"], 0, task.number) < task.number:
        raise StaleReply("a second reply to one task")
    if kind == "refused":
        return Refused(_read_error(fields))
    return _read_done(fields, task)


def _read_error(fields: Mapping[str, Any]) -> RequestError:
    extensions = fields["extensions"]
    reserved = _RESERVED.intersection(extensions)
    if reserved:
        raise BadReply("a refusal with a reserved member")
    error_type = _ERRORS[fields["error"]]
    return error_type(_text(fields["detail"]), **extensions)


def _read_done(fields: Mapping[str, Any], task: Task) -> Done:
    count = _whole(fields["shape"][0], 1, task.max_windows)
    shape = (count, *task.transform.size)
    if tuple(fields["shape"]) != shape:
        raise BadReply("a result of another shape than the model's input")
    windows = tuple(_read_window(window, task) for window in fields["windows"])
    if len(windows) != count:
        raise BadReply("a result with another number of windows than inputs")
    return Done(shape, windows, _read_media(fields["media"], task.limits))


def _read_window(window: Any, task: Task) -> Window:
    start, end, crop = window
    seconds = task.limits.max_seconds
    crops = task.transform.crops if isinstance(task.transform, VideoTransform) else 1
    start = _number(start, 0.0, seconds)
    return Window(start, _number(end, start, seconds), _whole(crop, 0, crops - 1))


def _read_media(media: Mapping[str, Any], limits: MediaLimits) -> MediaInfo:
    if isinstance(limits, VideoLimits):
        return _read_video(media, limits)
    return SoundInfo(
        seconds=_number(media["seconds"], 0.0, limits.max_seconds),
        sample_rate=_whole(media["sample_rate"], limits.min_rate, limits.max_rate),
        channels=_whole(media["channels"], 1, limits.max_channels),
    )


def _read_video(media: Mapping[str, Any], limits: VideoLimits) -> VideoInfo:
    most_frames = math.ceil(limits.max_seconds * limits.max_frame_rate) + 1
    width = _whole(media["width"], 1, limits.max_side)
    height = _whole(media["height"], 1, limits.max_side)
    if width * height > limits.max_pixels:
        raise BadReply("a video of too many pixels")
    return VideoInfo(
        seconds=_number(media["seconds"], 0.0, limits.max_seconds),
        frames=_whole(media["frames"], 1, most_frames),
        frame_rate=_number(media["frame_rate"], 0.0, _MOST_FRAMES_A_SECOND),
        width=width,
        height=height,
        codec=_codec(media["codec"]),
    )


def _number(value: Any, least: float, most: float) -> float:
    """Return ``value`` if it is a number from ``least`` to ``most``; NaN is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
        return float(value)
    raise BadReply("a number out of range")


def _whole(value: Any, least: int, most: int) -> int:
    """Return ``value`` if it is a whole number from ``least`` to ``most``."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise BadReply("a whole number out of range")


def _text(value: Any) -> str:
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        return value
    raise BadReply("no text, or a long one")


def _codec(value: Any) -> str:
    """Return ``value`` if it is a name of FFmpeg's for a codec."""
    if isinstance(value, str) and _CODEC.fullmatch(value):
        return value
    raise BadReply("no name of a codec")

"""Messages between the API process and a decode worker: small JSON, one a datagram.

A worker reads hostile bytes, so that its replies are not trusted either: nothing is unpickled, and
every value is checked against the limits and the transform of the task.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from server.errors import BadMedia, RequestError, TooLarge, UnsupportedFormat
from server.media.decoded import Decoded, MediaInfo, Window
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform

MAX_BYTES = 1 << 16  # of one message
_MAX_TEXT = 4_000  # characters
_ERRORS: dict[str, type[RequestError]] = {
    error.__name__: error for error in (BadMedia, TooLarge, UnsupportedFormat)
}
# Arguments of `RequestError` and members of every problem, which no worker may set.
_RESERVED = {"detail", "retry_after", "headers", "type", "title", "status", "instance"}
_FLOAT_BYTES = 4


class BadReply(Exception):
    """The worker has sent something that is no reply to its task."""


class StaleReply(BadReply):
    """The worker has sent one more reply to an earlier task."""


@dataclass(frozen=True)
class Task:
    """What a worker is to do with the body that comes with it.

    Attributes:
        number: by which its reply names it.
        cpu_seconds: after which the kernel ends the worker.
    """

    number: int
    transform: AudioTransform
    limits: AudioLimits
    cpu_seconds: float

    @property
    def result_bytes(self) -> int:
        """The size of the most windows that the result may have."""
        return self.limits.max_windows * math.prod(self.transform.size) * _FLOAT_BYTES

    def pack(self) -> bytes:
        """Return the task as a message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, message: bytes) -> Task:
        """Return the task that ``message`` is."""
        fields = json.loads(message)
        return cls(
            fields["number"],
            AudioTransform(**fields["transform"]),
            AudioLimits(**fields["limits"]),
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
        windows=[[window.start, window.end] for window in decoded.windows],
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
    limits = task.limits
    count = _whole(fields["shape"][0], 1, limits.max_windows)
    shape = (count, *task.transform.size)
    if tuple(fields["shape"]) != shape:
        raise BadReply("a result of another shape than the model's input")
    windows = tuple(_read_window(ends, limits) for ends in fields["windows"])
    if len(windows) != count:
        raise BadReply("a result with another number of windows than inputs")
    media = fields["media"]
    info = MediaInfo(
        seconds=_number(media["seconds"], 0.0, limits.max_seconds),
        sample_rate=_whole(media["sample_rate"], limits.min_rate, limits.max_rate),
        channels=_whole(media["channels"], 1, limits.max_channels),
    )
    return Done(shape, windows, info)


def _read_window(ends: Any, limits: AudioLimits) -> Window:
    start, end = ends
    start = _number(start, 0.0, limits.max_seconds)
    return Window(start, _number(end, start, limits.max_seconds))


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

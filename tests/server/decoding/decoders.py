"""A decoder for workers under test: a body is the name of what happens to it, and an argument."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from server.decoding.messages import pack_done
from server.errors import BadMedia, TooLarge
from server.media.decoded import Decoded, SoundInfo, VideoInfo, Window
from server.media.limits import AudioLimits, VideoLimits
from server.media.transforms import AudioTransform, MediaTransform, VideoTransform
from tests.server.decoding import attempts

CHUNK = 10_000_000  # bytes


def decode(body: bytes, transform: AudioTransform, limits: AudioLimits) -> Decoded:
    """A number becomes one window of it, the sound of the warm-up becomes one of zeros."""
    word, _, argument = body.partition(b" ")
    action = ACTIONS.get(word.decode("latin-1"))
    if action is not None:
        action(argument.decode())
    count = int(argument) if word == b"windows" else 1
    value = float(word) if word.isdigit() else 0.0
    if word == b"length":
        value = float(len(body))
    return windows_of(value, count, transform)


def decode_video(body: bytes, transform: VideoTransform, limits: VideoLimits) -> Decoded:
    """As `decode`: a number becomes all clips and crops of it."""
    word, _, argument = body.partition(b" ")
    action = ACTIONS.get(word.decode("latin-1"))
    if action is not None:
        action(argument.decode())
    value = int(word) if word.isdigit() else 0
    return clips_of(value, transform)


def windows_of(value: float, count: int, transform: MediaTransform) -> Decoded:
    inputs = np.full((count, *transform.size), value, np.float32)
    windows = tuple(Window(float(index), index + 0.5) for index in range(count))
    return Decoded(inputs, windows, SoundInfo(1.5, 44_100, 2))


def clips_of(value: int, transform: VideoTransform) -> Decoded:
    windows = tuple(
        Window(float(clip), clip + 0.5, crop)
        for clip in range(transform.clips)
        for crop in range(transform.crops)
    )
    inputs = np.full((len(windows), *transform.size), value, np.uint8)
    return Decoded(inputs, windows, VideoInfo(4.0, 100, 25.0, 64, 48, "h264"))


def _socket() -> int:
    return int(sys.argv[1])


def _hang(argument: str) -> None:
    while True:
        time.sleep(1)


def _burn(argument: str) -> None:
    while True:
        pass


def _allocate(argument: str) -> None:
    blocks = []
    while True:
        blocks.append(np.empty(CHUNK, np.uint8))


def _sleep(argument: str) -> None:
    time.sleep(float(argument))


def _crash(argument: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _exit(argument: str) -> None:
    os._exit(int(argument))


def _raise(argument: str) -> None:
    raise ValueError("a mistake in the decoder")


def _refuse(argument: str) -> None:
    raise TooLarge("a sound may take 120 s", allowed=120)


def _inject(argument: str) -> None:
    raise BadMedia("a header of the response", **json.loads(argument))


def _send(argument: str) -> None:
    """Send something else before the reply."""
    os.write(_socket(), argument.encode())


def _forge(argument: str) -> None:
    """Reply twice to the task, which is in a frame of the worker's."""
    frame = sys._getframe()
    while "task" not in frame.f_locals and frame.f_back is not None:
        frame = frame.f_back
    task = frame.f_locals["task"]
    os.write(_socket(), pack_done(task.number, windows_of(99.0, 1, task.transform)))


def _send_later(argument: str) -> None:
    """Send something after the reply: when the worker waits for its next task."""
    receive = socket.recv_fds

    def send_and_receive(*arguments: Any) -> Any:
        os.write(_socket(), b"late")
        return receive(*arguments)

    socket.recv_fds = send_and_receive  # type: ignore[assignment]


def _flood(argument: str) -> None:
    with contextlib.suppress(OSError):
        os.write(_socket(), b"x" * 100_000)


def _close(argument: str) -> None:
    """Close the socket, and live on."""
    os.close(_socket())
    _hang("")


def _attempt(argument: str) -> None:
    """Tell what came of something that is forbidden."""
    raise BadMedia(attempts.outcome(argument))


ACTIONS: dict[str, Callable[[str], None]] = {
    "hang": _hang,
    "burn": _burn,
    "allocate": _allocate,
    "sleep": _sleep,
    "crash": _crash,
    "exit": _exit,
    "raise": _raise,
    "refuse": _refuse,
    "inject": _inject,
    "send": _send,
    "forge": _forge,
    "later": _send_later,
    "flood": _flood,
    "close": _close,
    "attempt": _attempt,
}

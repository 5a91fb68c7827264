"""Pictures decoded in threads, ahead of the forward pass and in their order."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

from server.commands.inputs import Row, read_inputs
from server.errors import RequestError
from server.media.transforms import ImageTransform

# A picture of the most pixels that are allowed has fewer, also without compression.
_MAX_FILE_BYTES = 256_000_000
# What is written has one name a line, as UTF-8.
_LINE_BREAKS = frozenset("\r\n")


class Picture(NamedTuple):
    """One file of the list.

    Attributes:
        pixels: ``uint8 (C, H, W)``; None if it cannot be decoded.
        reason: why it cannot; else empty.
    """

    pixels: Row | None
    reason: str = ""


class Unreadable(Exception):
    """A file is passed over. The message says why."""


class ParallelDecoder:
    """Threads that decode pictures, at most ``ahead`` that nobody has taken yet.

    Args:
        transform: of the model.
        threads: how many.
        ahead: pictures that are decoded, being decoded or waiting for it. This bounds the memory.
        pauses: whether `paused` has an effect.
    """

    def __init__(
        self,
        transform: ImageTransform,
        threads: int,
        ahead: int,
        *,
        pauses: bool,
    ) -> None:
        self._transform = transform
        self._ahead = ahead
        self._pauses = pauses
        self._may_decode = threading.Event()
        self._may_decode.set()
        self._threads = ThreadPoolExecutor(threads, "decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._may_decode.set()
        self._threads.shutdown(cancel_futures=True)

    def decode(self, paths: Iterable[str]) -> Iterator[Picture]:
        """Yield the pictures of ``paths`` in their order."""
        waiting: deque[Future[Picture]] = deque()
        for path in paths:
            waiting.append(self._threads.submit(self._decode, path))
            if len(waiting) >= self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let no thread begin with a picture during the block; files are read meanwhile."""
        if self._pauses:
            self._may_decode.clear()
        try:
            yield
        finally:
            self._may_decode.set()

    def _decode(self, path: str) -> Picture:
        try:
            body = read_picture(path)
            self._may_decode.wait()
            return Picture(read_inputs(body, self._transform).rows[0])
        except RequestError as error:
            return Picture(None, error.detail)
        except Unreadable as error:
            return Picture(None, str(error))


def read_picture(path: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        Unreadable: it cannot be read or is too large, or its name does not fit in a list of names.
    """
    if not _is_writable_name(path):
        raise Unreadable("its name is not UTF-8 or has a line break; rename it")
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("it is not a file")
            if status.st_size > _MAX_FILE_BYTES:
                raise Unreadable(f"it has {status.st_size} bytes; allowed are {_MAX_FILE_BYTES}")
            if not status.st_size:
                raise Unreadable("it is empty")
            return file.read()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer would otherwise block for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_writable_name(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 are surrogates in it
        return False
    return _LINE_BREAKS.isdisjoint(path)

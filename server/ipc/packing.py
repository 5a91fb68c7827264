"""How messages over a socket pair are packed.

A message is its length, 4 bytes in network byte order, and the pickle of a class of
`server.ipc.messages` or `server.ipc.control`. The highest bit of the length says that a file
descriptor travels with the message. Pickle is safe here: the processes of a server inherit their
sockets from its parent process, and the pairs have no names, so that no other process can connect
to them.

Every image needs a `Job` and an `Outcome`, thousands per second on a GPU. So both are pickled as
plain tuples, and `copyreg` replaces the name of the function that rebuilds them by a number.
"""

from __future__ import annotations

import copyreg
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from server.ipc.messages import BatchDone, Job, Outcome
from tome_core.schedule import Schedule

Message = TypeVar("Message")

_LENGTH = struct.Struct("!I")
_HAS_DESCRIPTOR = 1 << 31  # a bit of the length
# Far more than the outcomes of a batch or the labels of a model. Whoever sends more sends garbage.
_MOST_BYTES = 256 << 20

# Extension codes of pickle; `copyreg` reserves 240 to 255 for private use.
_JOB_CODE = 0xF0
_BATCH_DONE_CODE = 0xF1
_SCHEDULE_CODE = 0xF2

_CACHED_TEXTS = 1024  # clients choose schedules, so the number needs a bound


class BadMessage(Exception):
    """The other process has sent something that is no message, or none that is expected."""


class WithDescriptor(NamedTuple):
    """A message that has arrived with a descriptor, which is that of a socket."""

    message: object
    connection: socket.socket


def check_type(message: object, expected: type[Message]) -> Message:
    """Return ``message``. Raises `BadMessage` unless it is an ``expected`` one."""
    if not isinstance(message, expected):
        raise BadMessage(f"{type(message).__name__} was received, not {expected.__name__}")
    return message


def pack(message: Any, *, has_descriptor: bool = False) -> bytes:
    """Return a message as bytes: its length and its pickle.

    Args:
        has_descriptor: whether a descriptor is sent with the first of these bytes.
    """
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    size = len(body)
    if has_descriptor:
        size |= _HAS_DESCRIPTOR
    return _LENGTH.pack(size) + body


def unpack(body: bytes | memoryview) -> object:
    """Return the message whose pickle is ``body``. Raises `BadMessage`."""
    try:
        return pickle.loads(body)
    except Exception as error:  # whatever its content makes pickle or a constructor raise
        raise BadMessage(f"a message of {len(body)} bytes cannot be read: {error}") from error


class Unpacker:
    """Takes the bytes of a stream as they arrive, in pieces, and returns the messages in them."""

    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of a message
        self._descriptors: deque[int] = deque()

    def add_descriptors(self, descriptors: Iterable[int]) -> None:
        """Take descriptors that have arrived with the bytes that are given next."""
        self._descriptors.extend(descriptors)

    def messages(self, piece: bytes | memoryview) -> list[Any]:
        """Return the messages that are complete with ``piece``; `WithDescriptor` where one came.

        Raises:
            BadMessage: one of them is no message, or lacks its descriptor.
        """
        if not self._rest:
            with memoryview(piece) as view:
                messages, end = self._complete_messages(view)
                self._rest += view[end:]
            return messages
        self._rest += piece
        with memoryview(self._rest) as view:
            messages, end = self._complete_messages(view)
        del self._rest[:end]
        return messages

    def close(self) -> None:
        """Close the descriptors whose messages are not complete."""
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _complete_messages(self, view: memoryview) -> tuple[list[Any], int]:
        """Return the messages that are complete in ``view``, and where the last of them ends."""
        messages: list[Any] = []
        available = len(view)
        start = 0
        while start + _LENGTH.size <= available:
            (size,) = _LENGTH.unpack_from(view, start)
            body = start + _LENGTH.size
            end = body + (size & ~_HAS_DESCRIPTOR)
            if end - body > _MOST_BYTES:
                raise BadMessage(f"a message of {end - body} bytes is too long")
            if end > available:
                break
            message = unpack(view[body:end])
            if size & _HAS_DESCRIPTOR:
                message = WithDescriptor(message, self._take_connection())
            messages.append(message)
            start = end
        return messages, start

    def _take_connection(self) -> socket.socket:
        if not self._descriptors:
            raise BadMessage("a message came without its descriptor; too many files may be open")
        descriptor = self._descriptors.popleft()
        try:
            return socket.socket(fileno=descriptor)
        except OSError as error:
            os.close(descriptor)
            raise BadMessage(f"a message came with no socket but another file: {error}") from error


def _reduce_job(job: Job) -> tuple[Callable[..., Job], tuple[Any, ...]]:
    texts = " ".join(map(str, job.choices))
    return restore_job, (job.id, job.slot, job.model, texts, *job[4:])


def restore_job(number: int, slot: int, model: str, choices: str, *others: Any) -> Job:
    """Return a job from its pickled fields, with the schedules as text.

    Jobs with the same text share one tuple of schedules.
    """
    return Job(number, slot, model, _parse_schedules(choices), *others)


@lru_cache(maxsize=_CACHED_TEXTS)
def _parse_schedules(texts: str) -> tuple[Schedule, ...]:
    return tuple(map(Schedule.parse, texts.split(" ")))


def _reduce_schedule(schedule: Schedule) -> tuple[Callable[..., Schedule], tuple[str]]:
    return restore_schedule, (str(schedule),)


@lru_cache(maxsize=_CACHED_TEXTS)
def restore_schedule(text: str) -> Schedule:
    """Return a schedule from its text."""
    return Schedule.parse(text)


def _reduce_batch_done(batch: BatchDone) -> tuple[Callable[..., BatchDone], tuple[Any, ...]]:
    return restore_batch_done, (
        batch.model,
        list(map(tuple, batch.outcomes)),
        batch.images,
        batch.tokens,
        batch.forward_seconds,
        batch.predicted_seconds,
        batch.r0_seconds,
        batch.failures,
        batch.cost_model,
    )


def restore_batch_done(model: str, outcomes: list[tuple[Any, ...]], *others: Any) -> BatchDone:
    """Return a batch from its pickled fields, with the outcomes as plain tuples."""
    return BatchDone(model, tuple(map(Outcome._make, outcomes)), *others)


copyreg.pickle(Job, _reduce_job)
copyreg.pickle(Schedule, _reduce_schedule)
copyreg.pickle(BatchDone, _reduce_batch_done)
copyreg.add_extension(__name__, restore_job.__name__, _JOB_CODE)
copyreg.add_extension(__name__, restore_batch_done.__name__, _BATCH_DONE_CODE)
copyreg.add_extension(__name__, restore_schedule.__name__, _SCHEDULE_CODE)

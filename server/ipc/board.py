"""The board: what all processes of a server know of one another, in shared memory.

It has a row of numbers for each engine, for each API process ("worker"), and for each slot. Any
process reads any row at any time, without a lock and without a message. Every value is an aligned
8-byte number with a single writer at a time, so that a reader never sees a value that is written in
part; values of a row that belong together may be of two moments, which predictions can bear.

| row | written by |
| --- | --- |
| engine | the engine, but `expected_ready` and `ready`: the parent process |
| worker | the API process |
| slot | the API process that the slot belongs to |

The parent clears the rows of a process that has ended. Each engine has two rows: while a reload is
under way, its successor runs beside it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from server.ipc.shared_memory import create_memory
from server.latency.cost import ImageCost
from server.latency.queueing import WorkEstimate

BEAT_SECONDS = 0.5  # between two heartbeats of a process

_FIELDS = 16  # of a row; more than any row has, and 128 bytes: rows share no cache line
_VALUE_BYTES = 8

# Fields of an engine's row.
_BEAT = 0
_BEGAN = 1
_PREDICTED = 2
_RESIDENT = 3
_LIMIT = 4
_READY = 5
_EXPECTED_READY = 6

# Fields of a worker's row.
_HELD_BYTES = 1
_REQUESTS = 2
_CONNECTIONS = 3
_ACCEPTING = 4

# Fields of a slot's row. The state is the last one: a row is written in this order.
_MODEL = 0
_GENERATION = 1
_DUE = 2
_COST = 3
_SECOND = _COST + len(ImageCost._fields)
_STATE = _SECOND + len(ImageCost._fields)

# States of a slot. From `_SUBMITTED` on: the index of the engine that has its job is added.
_FREE = 0
_ADMITTED = 1
_SUBMITTED = 2

# Native doubles, each of which is written at once.
_SLOT_ROW = struct.Struct(f"@{_STATE + 1}d")

# Model, generation, due, costs. The costs stay packed: the rows of a queue have few different ones.
_COST_BYTES = (_SECOND - _COST) * _VALUE_BYTES
_SLOT_WORK = struct.Struct(f"@3d{_COST_BYTES}s{_COST_BYTES}s")
_IMAGE_COST = struct.Struct(f"@{_SECOND - _COST}d")


@lru_cache(maxsize=4096)
def _image_cost(packed: bytes) -> ImageCost:
    return ImageCost._make(_IMAGE_COST.unpack(packed))


@dataclass(frozen=True)
class BoardSize:
    """How many rows a board has.

    Attributes:
        engines: that serve at the same time, one for each device.
        workers: API processes.
        slots: of all API processes together.
    """

    engines: int
    workers: int
    slots: int

    @property
    def engine_rows(self) -> int:
        """Rows of engines: each has one more for its successor."""
        return 2 * self.engines

    @property
    def bytes(self) -> int:
        """Size of the memory."""
        rows = self.engine_rows + self.workers + self.slots
        size = rows * _FIELDS * _VALUE_BYTES
        return math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE


@dataclass(frozen=True)
class Heartbeat:
    """The state of an engine at one time. Times are ``time.monotonic()`` seconds; 0 means none.

    Attributes:
        beat: time of the last heartbeat.
        batch_started: start time of the current batch; 0 if no batch runs.
        predicted_seconds: predicted duration of the current batch.
        resident_bytes: resident memory of the engine process.
        batch_limit: most images that the engine runs in one batch now.
    """

    beat: float = 0.0
    batch_started: float = 0.0
    predicted_seconds: float = 0.0
    resident_bytes: int = 0
    batch_limit: int = 0


class EngineRow:
    """The row of one engine."""

    def __init__(self, values: npt.NDArray[np.float64]) -> None:
        self._values = values

    def beat(self, now: float, resident_bytes: int) -> None:
        """Record a heartbeat. Called by the engine's heartbeat thread.

        Args:
            now: ``time.monotonic()`` seconds.
            resident_bytes: resident memory of the engine process.
        """
        self._values[_RESIDENT] = resident_bytes
        self._values[_BEAT] = now

    def begin_batch(self, now: float, predicted_seconds: float) -> None:
        """Record the start of a batch. Called by the engine's loop."""
        self._values[_PREDICTED] = predicted_seconds
        self._values[_BEGAN] = now

    def end_batch(self) -> None:
        """Record that no batch runs. Called by the engine's loop."""
        self._values[_BEGAN] = 0.0

    def set_batch_limit(self, images: int) -> None:
        """Record the most images of one batch. Called by the engine's loop."""
        self._values[_LIMIT] = images

    def expect_ready(self, when: float) -> None:
        """Record when the engine may be ready. Called by the parent."""
        self._values[_EXPECTED_READY] = when

    def set_ready(self, ready: bool) -> None:
        """Record whether all API processes can send jobs to the engine. Called by the parent."""
        self._values[_READY] = ready

    def clear(self) -> None:
        """Forget an engine process that has ended. Called by the parent."""
        self._values[:_EXPECTED_READY] = 0.0

    @property
    def ready(self) -> bool:
        """Whether all API processes can send jobs to the engine."""
        return bool(self._values[_READY])

    @property
    def expected_ready(self) -> float:
        """When the engine may be ready, ``time.monotonic()`` seconds."""
        return float(self._values[_EXPECTED_READY])

    def heartbeat(self) -> Heartbeat:
        """Return the current state."""
        values = self._values[: _LIMIT + 1].tolist()
        return Heartbeat(
            beat=values[_BEAT],
            batch_started=values[_BEGAN],
            predicted_seconds=values[_PREDICTED],
            resident_bytes=int(values[_RESIDENT]),
            batch_limit=int(values[_LIMIT]),
        )


class WorkerRow:
    """The row of one API process."""

    def __init__(self, values: npt.NDArray[np.float64]) -> None:
        self._values = values

    def beat(self, now: float) -> None:
        """Record that the event loop runs, at ``time.monotonic()`` seconds."""
        self._values[_BEAT] = now

    def heartbeat(self) -> Heartbeat:
        """Return the time of the last beat, as the state of a process without batches."""
        return Heartbeat(beat=float(self._values[_BEAT]))

    def set_held_bytes(self, size: int) -> None:
        """Record how many bytes of bodies the process holds in memory."""
        self._values[_HELD_BYTES] = size

    def set_requests(self, count: int) -> None:
        """Record how many requests are in flight."""
        self._values[_REQUESTS] = count

    def set_connections(self, count: int) -> None:
        """Record how many connections are open."""
        self._values[_CONNECTIONS] = count

    def set_accepting(self, accepting: bool) -> None:
        """Record whether the process accepts connections."""
        self._values[_ACCEPTING] = accepting

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return int(self._values[_CONNECTIONS])

    def clear(self) -> None:
        """Forget a process that has ended. Called by the parent."""
        self._values[:] = 0.0


class Board:
    """The mapped board.

    Attributes:
        descriptor: of its memory, which child processes can inherit.
        engines, workers: their rows.
    """

    def __init__(self, descriptor: int, size: BoardSize) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, size.bytes)
        # To read or write a few values, a view takes a fraction of the time of NumPy.
        self._values = memoryview(self._map).cast("d")
        values: npt.NDArray[np.float64] = np.frombuffer(self._map, np.float64)
        rows = values[: len(values) // _FIELDS * _FIELDS].reshape(-1, _FIELDS)
        engine_end = size.engine_rows
        worker_end = engine_end + size.workers
        self._worker_rows = rows[engine_end:worker_end]
        self._slot_rows = rows[worker_end : worker_end + size.slots]
        self._worker_start = engine_end * _FIELDS
        self._slot_start = worker_end * _FIELDS
        self.engines = [EngineRow(row) for row in rows[:engine_end]]
        self.workers = [WorkerRow(row) for row in self._worker_rows]

    @classmethod
    def create(cls, size: BoardSize) -> Board:
        """Return a new board. Child processes can inherit its descriptor."""
        return cls(create_memory("tome-board", size.bytes), size)

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that all API processes hold in memory."""
        return self._sum_over_workers(_HELD_BYTES)

    @property
    def requests(self) -> int:
        """Requests in flight in all API processes."""
        return self._sum_over_workers(_REQUESTS)

    def _sum_over_workers(self, field: int) -> int:
        return int(sum(self._values[self._worker_start + field : self._slot_start : _FIELDS]))

    def fewest_connections(self) -> int:
        """Return the connections of the API process that has the fewest, of those that accept."""
        accepting = self._worker_rows[self._worker_rows[:, _ACCEPTING] > 0]
        if not len(accepting):
            return 0
        return int(accepting[:, _CONNECTIONS].min())

    def admit(self, slot: int, model: int, work: WorkEstimate) -> None:
        """Record that ``slot`` is held by an image of ``work``.

        Args:
            model: index of its model.
        """
        start = (self._slot_start + slot * _FIELDS) * _VALUE_BYTES
        _SLOT_ROW.pack_into(
            self._map,
            start,
            model,
            work.generation,
            work.due,
            *work.image_cost,
            *work.second,
            _ADMITTED,
        )

    def submit(self, slot: int, engine: int) -> None:
        """Record that ``engine`` has the job of ``slot``, which was admitted before."""
        self._values[self._slot_start + slot * _FIELDS + _STATE] = _SUBMITTED + engine

    def release(self, slot: int) -> None:
        """Record that ``slot`` holds no work any more."""
        self._values[self._slot_start + slot * _FIELDS + _STATE] = _FREE

    def clear_slots(self, worker: int) -> None:
        """Forget the work of all slots of an API process that has ended. Called by the parent."""
        self._slot_rows[worker :: len(self.workers), _STATE] = _FREE

    @property
    def submitted(self) -> int:
        """Number of jobs that engines have not answered."""
        return int((self._slot_rows[:, _STATE] >= _SUBMITTED).sum())

    def submitted_to(self, engine: int) -> int:
        """Return the number of jobs that ``engine`` has not answered."""
        return int((self._slot_rows[:, _STATE] == _SUBMITTED + engine).sum())

    def work_of(self, engine: int, models: Sequence[str], due: float) -> list[WorkEstimate]:
        """Return the work that ``engine`` has and that is due at ``due`` or before.

        Args:
            models: the names of the served models, in their order.
        """
        return self._work(_SUBMITTED + engine, models, due)

    def unsubmitted_work(
        self, models: Sequence[str], due: float, generation: int = 0
    ) -> list[WorkEstimate]:
        """Return the work that is admitted, that no engine has, and that is due at ``due``.

        Args:
            models: those of ``generation``, whose engines will have it.
        """
        of_generation = self._slot_rows[:, _GENERATION] == generation
        return self._work(_ADMITTED, models, due, of_generation)

    def _work(
        self,
        state: int,
        models: Sequence[str],
        due: float,
        of_generation: npt.NDArray[np.bool_] | bool = True,
    ) -> list[WorkEstimate]:
        states = self._slot_rows[:, _STATE]
        is_wanted = (states == state) & (self._slot_rows[:, _DUE] <= due) & of_generation
        rows = self._slot_rows[is_wanted, _MODEL:_STATE].tobytes()
        return [
            WorkEstimate(
                models[int(model)], _image_cost(cost), row_due, _image_cost(second), int(generation)
            )
            for model, generation, row_due, cost, second in _SLOT_WORK.iter_unpack(rows)
        ]

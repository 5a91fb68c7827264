"""What the API process and an engine process say to each other: plain data, nothing else.

API to engine: an `EngineConfig`, `SlotsReady` in answer to `Ready`, then `Job` and `Cancel`, at last
`Stop`. Engine to API: `Ready` or `StartFailed`, then one `BatchDone` per batch.
Times are ``time.monotonic()`` seconds, which all processes of a machine share.

A job and an outcome there is for every image, thousands a second on a GPU, so both are tuples, and
cross as such: pickle, which would name and look up a class for each, is told a number for what puts
them together again.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from server.imaging.transform import Transform
from server.latency.cost import Estimate, Geometry
from tome_core.cost import Cost
from tome_core.schedule import Schedule

# What a job is for: the best classes, the pooled features, or where every token ended.
OutputKind = Literal["classes", "features", "source"]

# Why a batch failed.
FailureKind = Literal["error", "out-of-memory"]

_JOB = 0xF0
_BATCH_DONE = 0xF1  # of the numbers that `copyreg` leaves to private use


@dataclass(frozen=True)
class Level:
    """What one ``r`` costs and gives. ``speedup`` is measured at warm-up on this device, None where it was not."""

    r: str
    tokens_out: int
    relative_flops: float
    speedup: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class ModelInfo:
    """One served model, as the API needs to know it; it builds none itself.

    Attributes:
        labels: of the classes; none for a model without a classifier.
        tokens: at the input, prefix tokens included (N0).
        grid: rows and columns of patches.
        acceleration: what makes it fast on its device, and proved right there: ``kernels``,
            ``operators``, ``graphs`` (of either), or ``reference``, the plain network, and
            ``reference-graphs``, graphs of it, where the optimised network did not prove right.
        cost: of its blocks.
    """

    name: str
    architecture: str
    transform: Transform
    labels: tuple[str, ...]
    tokens: int
    prefix: int
    depth: int
    device: str
    dtype: str
    levels: tuple[Level, ...]
    grid: tuple[int, int]
    acceleration: str = "reference"
    cost: Cost = field(default=Cost(0, ()))

    @property
    def geometry(self) -> Geometry:
        """What prices follow from."""
        return Geometry(self.tokens, self.prefix, self.depth, self.cost)

    @property
    def r_max(self) -> int:
        """The largest valid ``r``: what one block could merge at the input."""
        return (self.tokens - self.prefix) // 2


class Job(NamedTuple):
    """One admitted, decoded image.

    Attributes:
        slot: where its pixels lie, CHW at the slot's start.
        choices: the one schedule that was asked for, or several from which the engine takes one
            when the job runs.
        top_k: how many classes are wanted, 0 where something else is.
        deadline: when its answer is worth nothing any more; None for the server's default target.
        normalised: its pixels are float32 as the model takes them, else uint8.
    """

    id: int
    slot: int
    model: str
    choices: tuple[Schedule, ...]
    top_k: int
    submitted: float
    deadline: float | None = None
    want: OutputKind = "classes"
    normalised: bool = False

    def __reduce__(self) -> tuple[Callable[..., Job], tuple[Any, ...]]:
        return job_of, (*self[:3], " ".join(map(str, self.choices)), *self[4:])


@lru_cache(maxsize=1024)
def _choices(texts: str) -> tuple[Schedule, ...]:
    return tuple(map(Schedule.parse, texts.split(" ")))


def job_of(number: int, slot: int, model: str, choices: str, *others: Any) -> Job:
    """A job as it is pickled: its schedules in their text form. Those of jobs with the same text are the same."""
    return Job(number, slot, model, _choices(choices), *others)


copyreg.add_extension(__name__, job_of.__name__, _JOB)


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this job any more; drop it if it has not run."""

    id: int


@dataclass(frozen=True)
class SlotsReady:
    """The slots are there, each of ``slot_bytes``: map them; jobs may follow."""

    slot_bytes: int


@dataclass(frozen=True)
class Stop:
    """Finish what was submitted, then end."""


@dataclass(frozen=True)
class Ready:
    """The models are loaded and warm.

    Attributes:
        slot_bytes: what the largest input needs.
        estimates: of each model's speed, by name.
    """

    models: tuple[ModelInfo, ...]
    slot_bytes: int
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class Accelerations:
    """What an engine may try to be fast by; each still has to prove itself.

    Attributes:
        optimised: the optimised network, in place of the plain one.
        kernels: on a GPU, kernels of our own in it.
        graphs: CUDA graphs of the network that serves.
    """

    optimised: bool = True
    kernels: bool = True
    graphs: bool = True

    def also(self, other: Accelerations) -> Accelerations:
        """Only what both allow."""
        return Accelerations(
            optimised=self.optimised and other.optimised,
            kernels=self.kernels and other.kernels,
            graphs=self.graphs and other.graphs,
        )


@dataclass(frozen=True)
class StartFailed:
    """The engine cannot start. ``reason`` is one sentence for the operator.

    Attributes:
        safer: with what a new process should try; None where it would fail in the same way.
    """

    reason: str
    safer: Accelerations | None = None


class Outcome(NamedTuple):
    """What became of one job: what it wanted, or why it did not get it.

    Attributes:
        failure: empty on success, else ``expired``, ``refused`` (it would be late, whatever is
            done), ``cancelled``, ``failed`` or ``out-of-memory``.
        schedule: that it ran under; None where it did not run.
        scores, classes: the best ``top_k``, best first.
        features: ``(D,)``, little-endian float32.
        source: ``(N0,)``, for every input token the position of the token it ended in,
            little-endian int32.
        queue_seconds: from its submission until its batch began.
    """

    id: int
    failure: str = ""
    schedule: Schedule | None = None
    scores: tuple[float, ...] = ()
    classes: tuple[int, ...] = ()
    tokens_out: int = 0
    queue_seconds: float = 0.0
    features: bytes = b""
    source: bytes = b""


@dataclass(frozen=True)
class BatchDone:
    """One batch: its outcomes, and its numbers for the metrics.

    Attributes:
        images: how many images ran together; 0 for outcomes that never ran.
        forward_seconds: device time from pixels to predictions.
        predicted_seconds: what was predicted when it began.
        r0_seconds: what the same images would have taken at r=0; 0 where they cannot be compared,
            because the batch failed and ran again in parts; then there is no prediction either.
        estimate: of the model's speed, after this batch.
        failures: the kinds of all failures in it: ``error``, ``out-of-memory`` (halving may have
            cured it), ``nan``.
    """

    model: str
    outcomes: tuple[Outcome, ...]
    images: int = 0
    tokens: int = 0
    forward_seconds: float = 0.0
    predicted_seconds: float = 0.0
    r0_seconds: float = 0.0
    failures: tuple[str, ...] = ()
    estimate: Estimate | None = None

    def __reduce__(self) -> tuple[Callable[..., BatchDone], tuple[Any, ...]]:
        model, outcomes, *others = (getattr(self, attribute.name) for attribute in fields(self))
        return batch_done_of, (model, list(map(tuple, outcomes)), *others)


def batch_done_of(model: str, outcomes: list[tuple[Any, ...]], *others: Any) -> BatchDone:
    """A batch as it is pickled: its outcomes as plain tuples."""
    return BatchDone(model, tuple(map(Outcome._make, outcomes)), *others)


copyreg.add_extension(__name__, batch_done_of.__name__, _BATCH_DONE)


ToEngine = SlotsReady | Job | Cancel | Stop
FromEngine = Ready | StartFailed | BatchDone

"""The messages of an engine process: plain data.

Parent process to engine: `EngineConfig`; `SlotsReady` as the answer to `Ready`; at the end `Stop`;
and those of `server.ipc.control`. Engine to parent: `Ready` or `StartFailed`.

API process to engine: `Job` and `Cancel`. Engine to API process: `BatchDone`, one for each batch in
which jobs of that process were, and some without a batch.

Times are ``time.monotonic()`` seconds, which all processes of a machine share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

from server.latency.cost import CostModel, Geometry
from server.media.modality import Modality
from server.media.transforms import Transform
from tome_core.cost import Cost
from tome_core.rules import RuleName
from tome_core.schedule import Schedule
from tome_core.split import most_mergeable

# The output of a job: the best classes, the pooled features, or for every input token the position
# of the token that it was merged into.
OutputKind = Literal["classes", "features", "source"]


class Failure(StrEnum):
    """Why a job has no output."""

    EXPIRED = "expired"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"
    OUT_OF_MEMORY = "out-of-memory"


class BatchFailure(StrEnum):
    """What went wrong in a batch: the label of ``tome_batch_failures_total``."""

    ERROR = "error"
    OUT_OF_MEMORY = "out-of-memory"
    NAN = "nan"


@dataclass(frozen=True)
class Level:
    """One value of ``r`` of a model, with its cost and accuracy.

    Attributes:
        tokens_out: tokens after the last block.
        relative_flops: FLOPs as a fraction of those at r=0.
        speedup: throughput of full batches divided by that at r=0, by the batches that were timed
            during warm-up on this device; None if it is unknown.
        accuracy: top-1 accuracy in percent, from the model's profile; None if it is unknown.
        agreement: of the best class with that at r=0, in percent, from the profile; None if it is
            unknown, as the following.
        agreement_low: what it is at least, by its 95 % confidence interval.
        margin: below which an image of this level runs again at r=0 with ``confidence=auto``; from
            the profile, None if it is unknown, as the following.
        margin_agreement: what the agreement is at least where images run again so, in percent.
        cascade_accuracy: top-1 accuracy where images run again so, in percent.
        cosine: mean of the pooled features with those at r=0, from the profile; None if it is
            unknown, as the following.
        cosine_low: what it is at least, by its 95 % confidence interval.
        cosine_p1, cosine_p5: below these are 1 % and 5 % of the images.
        recall_1, recall_10: of the nearest images by the features at r=0, those that are nearest at
            this ``r`` too, in percent.
        mixed_recall_1, mixed_recall_10: the same where half of the features is of r=0.
    """

    r: str
    tokens_out: int
    relative_flops: float
    speedup: float | None = None
    accuracy: float | None = None
    margin: float | None = None
    agreement: float | None = None
    agreement_low: float | None = None
    margin_agreement: float | None = None
    cascade_accuracy: float | None = None
    cosine: float | None = None
    cosine_low: float | None = None
    cosine_p1: float | None = None
    cosine_p5: float | None = None
    recall_1: float | None = None
    recall_10: float | None = None
    mixed_recall_1: float | None = None
    mixed_recall_10: float | None = None


class LabelSet(NamedTuple):
    """One of the sets of labels that images can be compared with; ``name`` is for requests."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """One served model, as reported by the engine. The API process does not build the network.

    Attributes:
        labels: one per class; empty for a model without a classifier. Where there are label sets,
            those of the first.
        tokens: tokens at the input of the first block (N0), prefix tokens included.
        prefix: prefix tokens (class token, registers), which never merge.
        depth: number of blocks.
        grid: rows and columns of patches; of a clip, those of all its times below each other.
        acceleration: the accelerations that passed the self check: ``kernels`` or ``operators`` for
            the optimised network, ``graphs`` for CUDA graphs of either; ``reference`` for the plain
            network and ``reference-graphs`` for CUDA graphs of it, if the optimised network failed.
        cost: MACs of its blocks.
        dtype_speedup: speed of the first block in ``dtype``, relative to the other dtype that was
            timed at start; None if none was. Below 1 if the self check rejected the faster one.
        r_max: the largest valid ``r``: half of the input tokens that can merge.
        merging: the rule by which its tokens merge.
        activation: computes the scores from the logits.
        embedding_dim: numbers of an embedding, the pooled features (D).
        matryoshka: whether the first numbers of an embedding are an embedding as well.
        label_sets: for zero-shot classification, the default first; empty for other models.
        modality: what it takes.
        generation: of the engines that serve it; see `server.ipc.control.Serving`. The API process
            adds it, and the aliases.
        aliases: its further names.
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
    dtype_speedup: float | None = None
    merging: RuleName = "paper"
    activation: str = "softmax"
    embedding_dim: int = 0
    matryoshka: bool = False
    label_sets: tuple[LabelSet, ...] = ()
    generation: int = 0
    aliases: tuple[str, ...] = ()
    r_max: int = field(init=False)
    modality: Modality = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modality", self.transform.modality)
        object.__setattr__(self, "r_max", most_mergeable(self.tokens, self.prefix))

    @property
    def geometry(self) -> Geometry:
        """The sizes that determine the computation of one input."""
        return Geometry(self.tokens, self.prefix, self.depth, self.cost)


class SecondPass(NamedTuple):
    """A second pass that an image may take.

    Attributes:
        shares: of the images that take it after a first pass under each of the job's choices, as
            expected, from 0 to 1.
    """

    schedule: Schedule
    shares: tuple[float, ...]


class Job(NamedTuple):
    """One admitted, decoded image to run, or one window of a sound or a video.

    Attributes:
        slot: index of the slot with its input, ``(C, H, W)``: pixels, or a window of a sound. The
            frames of a clip of video lie below each other.
        choices: the requested schedule; or several, the one that merges least first, from which the
            engine chooses when the job runs.
        top_k: number of classes to return, beside other outputs too; 0 for none.
        submitted: time at which the job was sent.
        deadline: time after which the job is not run; None for the default target.
        output_kind: the output to return.
        normalised: whether the pixels of an image or a clip are normalised, float32; else they are
            uint8. The windows of a sound always are.
        request_id: of the request that the image belongs to, for the engine's log.
        second: the schedule under which the image may have to run again, and how many images do;
            None if it never does.
        is_second: whether the image has run before.
        label_set: name of the labels to compare with; empty for the default, or a model without.
    """

    id: int
    slot: int
    model: str
    choices: tuple[Schedule, ...]
    top_k: int
    submitted: float
    deadline: float | None = None
    output_kind: OutputKind = "classes"
    normalised: bool = False
    request_id: str = ""
    second: SecondPass | None = None
    is_second: bool = False
    label_set: str = ""


@dataclass(frozen=True)
class Cancel:
    """The result of this job is not needed any more: drop the job if it has not run."""

    id: int


@dataclass(frozen=True)
class SlotsReady:
    """The shared memory has slots of ``slot_bytes`` bytes: map it. Jobs may follow.

    Attributes:
        offset: where they begin in it.
    """

    slot_bytes: int
    offset: int = 0


@dataclass(frozen=True)
class Stop:
    """Drain: run all submitted jobs, then end."""


@dataclass(frozen=True)
class Ready:
    """The models are loaded and warmed up.

    Attributes:
        slot_bytes: bytes of the largest input of any model.
        cost_models: the cost model of each model, by name.
    """

    models: tuple[ModelInfo, ...]
    slot_bytes: int
    cost_models: dict[str, CostModel]


@dataclass(frozen=True)
class Accelerations:
    """The accelerations that an engine may use, each only if it passes its self check.

    Attributes:
        optimised: the optimised network in place of the plain one.
        kernels: the GPU kernels of `tome_core` in the optimised network.
        graphs: CUDA graphs.
    """

    optimised: bool = True
    kernels: bool = True
    graphs: bool = True

    def intersection(self, other: Accelerations) -> Accelerations:
        """Return the accelerations that both allow."""
        return Accelerations(
            optimised=self.optimised and other.optimised,
            kernels=self.kernels and other.kernels,
            graphs=self.graphs and other.graphs,
        )


@dataclass(frozen=True)
class StartFailed:
    """The engine cannot start.

    Attributes:
        reason: one sentence for the operator.
        safer: the accelerations with which a new process should start; None if it would fail in the
            same way.
    """

    reason: str
    safer: Accelerations | None = None


class Outcome(NamedTuple):
    """The result of one job: its output, or the reason of its failure.

    Attributes:
        failure: None on success. ``refused``: no schedule meets the deadline.
        schedule: the schedule of the image; None if it did not run.
        scores, classes: the best ``top_k`` classes, best first.
        tokens_out: tokens after the last block.
        queue_seconds: queueing delay, from submission to the start of the batch.
        features: the pooled features ``(D,)``, little-endian float32.
        source: for every input token the position of the token it was merged into, ``(N0,)``,
            little-endian int32.
    """

    id: int
    failure: Failure | None = None
    schedule: Schedule | None = None
    scores: tuple[float, ...] = ()
    classes: tuple[int, ...] = ()
    tokens_out: int = 0
    queue_seconds: float = 0.0
    features: bytes = b""
    source: bytes = b""


@dataclass(frozen=True)
class BatchDone:
    """One completed batch: the outcomes of those jobs that the API process has sent, and numbers.

    The numbers are those of the whole batch, with the jobs of other API processes.

    Or no batch, but the outcomes of jobs that ended without running: cancelled, expired or refused.
    Then ``model`` is empty, ``images`` is 0, and the jobs may be of several models.

    Or only the cost model of ``model``, without outcomes; ``images`` is 0.

    Attributes:
        images: number of images in the batch.
        tokens: tokens at the input of the first block, over all images.
        forward_seconds: device time from pixels to predictions.
        predicted_seconds: prediction of ``forward_seconds`` at the start of the batch; 0 if this
            batch, or the one ahead of it, failed and ran again in parts.
        r0_seconds: predicted time of the same images at r=0, where none would run twice; 0 in the
            same cases, and for a batch of second passes alone.
        failures: those of the batch; after a shortage of memory its halves may have succeeded.
        cost_model: the latest cost model; None where it was sent a short time ago.
    """

    model: str
    outcomes: tuple[Outcome, ...]
    images: int = 0
    tokens: int = 0
    forward_seconds: float = 0.0
    predicted_seconds: float = 0.0
    r0_seconds: float = 0.0
    failures: tuple[BatchFailure, ...] = ()
    cost_model: CostModel | None = None


ToEngine = Job | Cancel  # from an API process

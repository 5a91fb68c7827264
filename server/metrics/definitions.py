"""All metrics: names, help texts, labels, buckets. The same in all processes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

PREFIX = "tome_"
SPEEDUP_WINDOW = 60  # seconds
WINDOW_FIELDS = 3  # of one second of work: the second, device time, device time at r=0

# Upper bounds of buckets.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = tuple(2**power for power in range(7, 18))
_ERRORS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0)


class Kind(Enum):
    """What the values of a metric are, and who knows them."""

    COUNTER = auto()  # the sum over all processes
    GAUGE = auto()  # the sum over all processes
    HISTOGRAM = auto()  # the sum over all processes
    SPEEDUP = auto()  # work of the last minute, of all engines
    LOCAL = auto()  # a gauge that each API process knows by itself


@dataclass(frozen=True)
class Definition:
    """One metric.

    Attributes:
        name: without `PREFIX`; that of a counter with ``_total``.
        bounds: upper bounds of a histogram's buckets, without infinity.
    """

    name: str
    help_text: str
    kind: Kind
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def values(self) -> int:
        """Number of float64 values of one series.

        A histogram has the observations in each bucket alone, infinity's last, and their sum.
        """
        if self.kind is Kind.HISTOGRAM:
            return len(self.bounds) + 2
        if self.kind is Kind.SPEEDUP:
            return SPEEDUP_WINDOW * WINDOW_FIELDS
        return 1


def _counter(name: str, help_text: str, *labels: str) -> Definition:
    return Definition(f"{name}_total", help_text, Kind.COUNTER, labels)


def _histogram(name: str, help_text: str, bounds: tuple[float, ...], *labels: str) -> Definition:
    return Definition(name, help_text, Kind.HISTOGRAM, labels, bounds)


def _local(name: str, help_text: str, *labels: str) -> Definition:
    return Definition(name, help_text, Kind.LOCAL, labels)


# Requests.
REQUESTS = _counter(
    "requests",
    "Requests answered; code 499 if the client disconnected first.",
    "route",
    "model",
    "code",
)
IMAGES = _counter(
    "images",
    "Images answered, by level of r of the model; so is each window of a sound or video.",
    "model",
    "r",
)
CASCADE_IMAGES = _counter(
    "cascade_images",
    "Images of requests with confidence, by result: certain after one pass, run again, uncertain"
    " where there was no time for a second pass, or failed where that failed.",
    "model",
    "result",
)
REJECTED = _counter("rejected", "Requests and files refused, by reason.", "reason")
CANCELLED = _counter("cancelled", "Requests whose client disconnected, by stage.", "stage")
DEADLINE_MISSED = _counter(
    "deadline_missed", "Images, or whole multipart requests, that missed their deadline."
)
INFLIGHT_REQUESTS = Definition("inflight_requests", "Requests in flight.", Kind.GAUGE)

# Durations.
REQUEST_DURATION = _histogram(
    "request_duration_seconds",
    "Time from the headers of a request to its answer.",
    _SECONDS,
    "route",
    "model",
)
STAGE_DURATION = _histogram(
    "stage_duration_seconds",
    "Time of each stage of an input: body, decode, queue, forward, picture.",
    _SECONDS,
    "stage",
)

# Batches.
BATCH_FAILURES = _counter("batch_failures", "Batches in which the model failed.", "kind")
FORWARD_SECONDS = _counter(
    "forward_seconds",
    "Device time of forward passes, without those that failed and ran again.",
    "model",
)
R0_SECONDS = _counter(
    "r0_equivalent_seconds",
    "Estimated device time of the same images at r=0: the forward time, scaled by the ratio"
    " of the cost model's predictions at r=0 and at the r that ran.",
    "model",
)
PREDICTED_SECONDS = _counter(
    "predicted_seconds",
    "Predicted device time of the batches in forward_seconds_total.",
    "model",
)
PREDICTION_ERROR = _histogram(
    "prediction_error_ratio",
    "Relative error of the predicted device time of a batch.",
    _ERRORS,
    "model",
)
BATCH_IMAGES = _histogram("batch_images", "Images per batch.", _IMAGES)
BATCH_TOKENS = _histogram("batch_tokens", "Input tokens per batch.", _TOKENS)
SPEEDUP = Definition(
    "speedup_ratio",
    "tome_r0_equivalent_seconds_total over tome_forward_seconds_total, both over the last"
    " minute: how many times as long its batches would have taken at r=0. No sample for a"
    " model that ran no batch in that minute.",
    Kind.SPEEDUP,
    ("model",),
)
QUEUE_JOBS = _local("queue_jobs", "Images that the engines have not answered yet.")

# Processes.
ENGINE_READY = _local("engine_ready", "1 if the engine is ready.", "engine")
ENGINE_HEARTBEAT = _local(
    "engine_heartbeat_timestamp_seconds",
    "Time of the engine's last heartbeat; 0 before the first one.",
    "engine",
)
ENGINE_RESIDENT_BYTES = _local(
    "engine_resident_bytes",
    "Resident memory of the engine process, and of its successor during a reload.",
    "engine",
)
ENGINE_BATCH_LIMIT = _local(
    "engine_batch_limit",
    "Current limit of images per batch; lower for a while after running out of memory.",
    "engine",
)
ENGINE_RESTARTS = _counter("engine_restarts", "Restarts of the engine process.", "engine")
API_WORKER_RESTARTS = _counter("api_worker_restarts", "Restarts of API processes.")
DECODE_WORKERS_LOST = _counter(
    "decode_workers_lost",
    "Processes decoding sounds and videos that were lost, by reason; each is replaced.",
    "reason",
)

RELOADS = _counter(
    "reloads",
    "Reloads of the catalog, by result: loaded, aliases, unchanged, or failed, where the models of"
    " before serve on.",
    "result",
)

# Models.
MODEL_INFO = _local(
    "model_info", "1 for each model that is served.", "model", "architecture", "device", "dtype"
)
DTYPE_SPEEDUP = _local(
    "dtype_speedup",
    "Speed in the dtype that serves relative to the other, timed at start; no sample if it"
    " was not.",
    "model",
    "dtype",
)
LEVEL_ACCURACY = _local(
    "level_accuracy",
    "Top-1 accuracy from 0 to 1, from the model's profile; no sample without a profile.",
    "model",
    "r",
)
ACCELERATION_INFO = _local(
    "acceleration_info",
    "1 for the acceleration of each model; kind reference or reference-...: plain network.",
    "model",
    "kind",
)

# Those whose values are in shared memory.
SHARED = tuple(
    definition
    for definition in list(globals().values())
    if isinstance(definition, Definition) and definition.kind is not Kind.LOCAL
)

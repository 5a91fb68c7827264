"""The report of a run, as plain numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tome_core.schedule import Schedule
from tome_load.latency import Latency
from tome_load.record import Record
from tome_load.spec import LoadSpec

WINDOW_SECONDS = 5.0
# Statuses with which a server sheds load immediately. A 504 is an answer that came too late.
REFUSALS = (429, 503)

# Fields left out of the JSON, because they are large, secret or written in another form.
_OMITTED_FIELDS = ("spec", "records", "windows")
_OMITTED_SPEC_FIELDS = ("uploads", "key", "probe")


@dataclass(frozen=True)
class Window:
    """The requests planned within a few seconds from ``start``; fields as in `LoadReport`."""

    start: float
    requests: int
    answered: int
    good: int
    refused: int
    goodput_per_s: float
    r_mean: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class LoadReport:
    """One run without its warm-up.

    Attributes:
        started: start of the measurement, Unix time.
        seconds: from the start of the measurement to the last answer.
        answered: requests with status 200.
        good: those of them that were answered within the deadline, if there is one, counted from
            when they were planned to be sent.
        outcomes: requests by status, or by failure where there was no answer.
        reasons: refused requests by the server's reason.
        response: latency of answers from when requests were planned to be sent: a stall counts for
            every request that it delays.
        service: latency of answers from when requests were sent, as a generator reports that waits
            for answers.
        refused: latency of refusals (429, 503) from when requests were sent.
        lag: how much later than planned requests were sent, for lack of a connection or of CPU time
            of this generator.
        r_used: answers by the schedule in them.
        r_mean: tokens merged away per block, on average.
        tokens_mean: tokens after the last block, on average.
        batch_mean: images in the same batch, on average over the answers.
        cpu_ms_per_request: CPU time of this process for each request, in milliseconds.
        records: every request, in the order of sending.
    """

    spec: LoadSpec
    started: float
    seconds: float
    requests: int
    answered: int
    good: int
    outcomes: dict[str, int]
    reasons: dict[str, int]
    response: Latency | None
    service: Latency | None
    refused: Latency | None
    lag: Latency | None
    r_used: dict[str, int]
    r_mean: float | None
    tokens_mean: float | None
    batch_mean: float | None
    windows: tuple[Window, ...]
    connections_opened: int
    cpu_ms_per_request: float
    records: tuple[Record, ...] = field(repr=False)

    @classmethod
    def of(
        cls,
        spec: LoadSpec,
        records: Sequence[Record],
        started: float,
        cpu_seconds: float,
        connections: int,
    ) -> LoadReport:
        """Summarize ``records``, those sent during the measurement.

        Args:
            started: start of the measurement, Unix time.
            cpu_seconds: CPU time for each request.
            connections: number of connections opened.
        """
        answered = [record for record in records if record.status == 200]
        refused = [record for record in records if record.status in REFUSALS]
        ends = [record.ended for record in records]
        seconds = max([*ends, spec.duration or 0.0])
        return cls(
            spec=spec,
            started=started,
            seconds=seconds,
            requests=len(records),
            answered=len(answered),
            good=count_good(answered, spec),
            outcomes=_counts(str(record.status or record.failure) for record in records),
            reasons=_counts(record.reason for record in records if record.reason),
            response=Latency.of(record.response for record in answered),
            service=Latency.of(record.service for record in answered),
            refused=Latency.of(record.service for record in refused),
            lag=Latency.of(_lags(records)),
            r_used=_counts(record.used for record in answered if record.used),
            r_mean=mean_r(answered),
            tokens_mean=_mean(record.tokens for record in answered if record.tokens),
            batch_mean=_mean(record.batch for record in answered if record.batch),
            windows=windows(spec, records, seconds),
            connections_opened=connections,
            cpu_ms_per_request=1000 * cpu_seconds,
            records=tuple(records),
        )

    @property
    def answered_per_s(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def goodput_per_s(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def good_share(self) -> float:
        """Good answers as a share of all requests."""
        return self.good / self.requests if self.requests else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return everything but the single requests, their contents and the key."""
        spec = {
            name: value
            for name, value in vars(self.spec).items()
            if name not in _OMITTED_SPEC_FIELDS
        }
        spec["uploads"] = [upload.name for upload in self.spec.uploads]
        content: dict[str, Any] = {"spec": spec}
        for name, value in vars(self).items():
            if isinstance(value, Latency):
                content[name] = asdict(value)
            elif name not in _OMITTED_FIELDS:
                content[name] = value
        content["answered_per_s"] = self.answered_per_s
        content["goodput_per_s"] = self.goodput_per_s
        content["good_share"] = self.good_share
        content["windows"] = [asdict(window) for window in self.windows]
        return content


def _counts(names: Iterable[str]) -> dict[str, int]:
    """Return how often each name occurs, the most frequent first."""
    return dict(Counter(names).most_common())


def _lags(records: Iterable[Record]) -> list[float]:
    return [record.sent - record.intended for record in records if record.sent is not None]


def is_good(record: Record, spec: LoadSpec) -> bool:
    """Return whether ``record`` was answered within the deadline."""
    if record.status != 200:
        return False
    return spec.deadline_ms is None or 1000 * record.response <= spec.deadline_ms


def count_good(records: Iterable[Record], spec: LoadSpec) -> int:
    """Return how many records were answered within the deadline."""
    return sum(is_good(record, spec) for record in records)


def windows(
    spec: LoadSpec,
    records: Iterable[Record],
    until: float,
    width: float = WINDOW_SECONDS,
) -> tuple[Window, ...]:
    """Group ``records`` into windows of ``width`` seconds; the last one ends with the run.

    The time that counts is when a request was planned to be sent.
    """
    records_of: dict[int, list[Record]] = {}
    for record in records:
        index = int(record.intended // width)
        records_of.setdefault(index, []).append(record)
    end = until if spec.duration is None else spec.duration
    found = []
    for index in range(max(records_of, default=-1) + 1):
        start = index * width
        length = min(width, end - start)
        found.append(_window(spec, start, length, records_of.get(index, [])))
    return tuple(found)


def _window(spec: LoadSpec, start: float, length: float, records: Sequence[Record]) -> Window:
    answered = [record for record in records if record.status == 200]
    good = count_good(answered, spec)
    latency = Latency.of(record.response for record in answered)
    return Window(
        start=start,
        requests=len(records),
        answered=len(answered),
        good=good,
        refused=sum(record.status in REFUSALS for record in records),
        goodput_per_s=good / length,
        r_mean=mean_r(answered),
        p99_ms=latency.p99 if latency else None,
    )


def mean_r(records: Iterable[Record]) -> float | None:
    """Return the tokens merged away per block, on average over the answers.

    An explicit list counts with its average over the blocks that it names.
    """
    return _mean(_average_r(record.used) for record in records if record.used)


def _average_r(schedule: str) -> float:
    counts = Schedule.parse(schedule).counts
    return sum(counts) / len(counts)


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None

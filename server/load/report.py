"""What a run showed, as plain numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from server.load.latency import Latency
from server.load.record import Record
from server.load.spec import LoadSpec
from tome_core.schedule import Schedule

WINDOW_SECONDS = 5.0
REFUSALS = (429, 503)  # at once; a 504 is an answer that did not come in time


@dataclass(frozen=True)
class Window:
    """The requests that were to be sent within some seconds from ``start``; the names mean what they do for a run."""

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
    """One run, less its warm-up.

    Attributes:
        seconds: from the first moment of measuring to the last answer.
        outcomes: requests by status, or by the kind of failure where there was no answer.
        reasons: answers without a result by the reason that the server gives.
        answered: requests with status 200.
        good: those of them that came within the deadline, if there is one, counted from when they
            were to be sent.
        response: of answers, counted from when they were to be sent: a stall counts for all that it
            holds up.
        service: of answers, counted from when they were sent; what a generator that waits would
            have reported.
        refused: how long refusals (429, 503) took, counted from when they were sent.
        lag: how much later than planned requests were sent, for want of a connection or of this
            generator's time.
        r_used: answers by the schedule that they name.
        cpu_ms_per_request: CPU time that this process spent for each request, in milliseconds.
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
        """Count ``records``, those of the measured time.

        Args:
            started: when measuring began, Unix time.
            cpu_seconds: CPU time for each request.
        """
        answered = [record for record in records if record.status == 200]
        used = Counter(record.used for record in answered if record.used)
        seconds = max([record.done for record in records] + [spec.duration or 0.0])
        return cls(
            spec=spec,
            started=started,
            seconds=seconds,
            requests=len(records),
            answered=len(answered),
            good=sum(is_good(record, spec) for record in answered),
            outcomes=dict(
                Counter(str(record.status or record.failure) for record in records).most_common()
            ),
            reasons=dict(
                Counter(record.reason for record in records if record.reason).most_common()
            ),
            response=Latency.of(record.response for record in answered),
            service=Latency.of(record.service for record in answered),
            refused=Latency.of(record.service for record in records if record.status in REFUSALS),
            lag=Latency.of(
                record.sent - record.intended for record in records if record.sent is not None
            ),
            r_used=dict(used.most_common()),
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
        """Answers within the deadline a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def good_share(self) -> float:
        """Of all requests, the part that was answered within the deadline."""
        return self.good / self.requests if self.requests else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything but the single requests, the pictures and the key."""
        shallow = {
            name: value
            for name, value in vars(self).items()
            if name not in ("spec", "records", "windows")
        }
        found = {
            name: asdict(value) if isinstance(value, Latency) else value
            for name, value in shallow.items()
        }
        spec = {
            name: value
            for name, value in vars(self.spec).items()
            if name not in ("pictures", "key", "probe")
        }
        spec["pictures"] = [picture.name for picture in self.spec.pictures]
        rates = {
            name: getattr(self, name) for name in ("answered_per_s", "goodput_per_s", "good_share")
        }
        return {
            "spec": spec,
            **found,
            **rates,
            "windows": [asdict(window) for window in self.windows],
        }


def is_good(record: Record, spec: LoadSpec) -> bool:
    """Whether ``record`` was answered, and soon enough."""
    return record.status == 200 and (
        spec.deadline_ms is None or 1000 * record.response <= spec.deadline_ms
    )


def windows(
    spec: LoadSpec, records: Iterable[Record], until: float, width: float = WINDOW_SECONDS
) -> tuple[Window, ...]:
    """``records`` by when they were to be sent, in slots of ``width`` seconds; the last ends with the run."""
    slots: dict[int, list[Record]] = {}
    for record in records:
        slots.setdefault(int(record.intended // width), []).append(record)
    end = until if spec.duration is None else spec.duration
    return tuple(
        _window(spec, index * width, min(width, end - index * width), slots.get(index, []))
        for index in range(max(slots, default=-1) + 1)
    )


def _window(spec: LoadSpec, start: float, length: float, records: Sequence[Record]) -> Window:
    answered = [record for record in records if record.status == 200]
    good = sum(is_good(record, spec) for record in answered)
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
    """Tokens merged away per block, on average over the answers; of an explicit list over the blocks that it names."""
    return _mean(_r(record.used) for record in records if record.used)


def _r(used: str) -> float:
    counts = Schedule.parse(used).counts
    return sum(counts) / len(counts)


def _mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return sum(kept) / len(kept) if kept else None

"""Runs as Markdown: one table for each body, and the ratios between contenders."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.front_end.contenders import (
    LITSERVE,
    MOSEC,
    OURS,
    describe,
    describe_network,
)
from benchmarks.front_end.cpu_time import KINDS


@dataclass(frozen=True)
class Run:
    """One load of one contender in one round; times in seconds.

    Attributes:
        api_processes: None where there is no such number.
        cores: that server and load generator shared.
        images: in each request.
        cpu: of all processes.
        cpu_by_kind: for each of `cpu_time.KINDS`; of our server alone.
    """

    contender: str
    api_processes: int | None
    cores: int
    body: str
    round: int
    requests: int
    requests_per_s: float
    images: int
    p50: float
    p99: float
    cpu: float
    cpu_by_kind: Mapping[str, float]

    @property
    def images_per_s(self) -> float:
        """Throughput."""
        return self.requests_per_s * self.images

    def cpu_per_image(self, kind: str | None = None) -> float:
        """CPU seconds of an image, in all processes or in those of ``kind``."""
        seconds = self.cpu if kind is None else self.cpu_by_kind[kind]
        return seconds / (self.requests * self.images)


@dataclass(frozen=True)
class Row:
    """Medians over the rounds of one contender with one body."""

    contender: str
    api_processes: int | None
    cores: int
    images_per_s: float
    p50: float
    p99: float
    cpu: float
    cpu_by_kind: Mapping[str, float]


def rows(runs: Iterable[Run], body: str) -> list[Row]:
    """Return the medians of each contender that was loaded with ``body``, in order."""
    groups: dict[tuple[str, int | None, int], list[Run]] = {}
    for run in runs:
        if run.body == body:
            groups.setdefault((run.contender, run.api_processes, run.cores), []).append(run)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Run]) -> Row:
    first = group[0]
    return Row(
        first.contender,
        first.api_processes,
        first.cores,
        statistics.median(run.images_per_s for run in group),
        statistics.median(run.p50 for run in group),
        statistics.median(run.p99 for run in group),
        statistics.median(run.cpu_per_image() for run in group),
        {
            kind: statistics.median(run.cpu_per_image(kind) for run in group)
            for kind in first.cpu_by_kind
        },
    )


def markdown(
    runs: Sequence[Run],
    descriptions: Mapping[str, str],
    connections: Mapping[str, int],
    about: Mapping[str, str],
) -> str:
    """Return the whole report.

    Args:
        descriptions: of the bodies.
        connections: of the load of each body.
        about: what was measured where.
    """
    rounds = 1 + max(run.round for run in runs)
    turns = "one round" if rounds == 1 else f"{rounds} rounds, in which all take turns"
    names = list(dict.fromkeys(run.contender for run in runs))
    parts = [
        "# The front end",
        "A request of a file has one image. CPU is milliseconds of CPU time for each image, in all"
        " processes of the server, and for ours by what they do. p50 and p99 are those of requests."
        f" Medians of {turns}.",
        "\n".join(f"* {name}: {describe(name)}." for name in names),
        describe_network(),
    ]
    for body, description in descriptions.items():
        found = rows(runs, body)
        if found:
            parts.append(f"## {description}")
            parts.append(f"{connections[body]} connections.")
            parts.append("\n".join(_table(found)))
            parts.extend(_ratios(found))
    parts += ["## Measured on", "\n".join(f"* {key}: {value}" for key, value in about.items())]
    return "\n\n".join(parts) + "\n"


def write_json(runs: Sequence[Run], about: Mapping[str, str], path: Path) -> None:
    """Write every run."""
    content = {"about": dict(about), "runs": [asdict(run) for run in runs]}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _table(found: Sequence[Row]) -> Iterator[str]:
    cells = ["contender", "API processes", "cores", "images/s", "p50, ms", "p99, ms", "CPU", *KINDS]
    yield _line(cells)
    yield _line(["---"] * len(cells))
    for row in found:
        kinds = [_milliseconds(row.cpu_by_kind.get(kind)) for kind in KINDS]
        yield _line(
            [
                row.contender,
                "" if row.api_processes is None else str(row.api_processes),
                str(row.cores),
                f"{row.images_per_s:.0f}",
                f"{1000 * row.p50:.1f}",
                f"{1000 * row.p99:.1f}",
                _milliseconds(row.cpu),
                *kinds,
            ]
        )


def _ratios(found: Sequence[Row]) -> Iterator[str]:
    """Compare ours with the peers, and with itself by its numbers of API processes."""
    own = [row for row in found if row.contender == OURS]
    for row in own:
        sentences = [
            f"{_times(row.cpu, peer.cpu)} of the CPU of {_title(peer)} and"
            f" {_times(row.images_per_s, peer.images_per_s)} of its images/s"
            for peer in found
            if peer.cores == row.cores and _are_compared(row, peer)
        ]
        if sentences:
            yield f"{_title(row)}: {'; '.join(sentences)}."
    for row in own[1:]:
        yield (
            f"{_title(row)} on {_cores(row)}, beside {own[0].api_processes} on {_cores(own[0])}:"
            f" {_times(row.images_per_s, own[0].images_per_s)} of the images/s,"
            f" {_times(row.cpu, own[0].cpu)} of the CPU."
        )


def _are_compared(row: Row, peer: Row) -> bool:
    if peer.contender == LITSERVE:
        return peer.api_processes == row.api_processes
    return peer.contender == MOSEC


def _title(row: Row) -> str:
    if row.api_processes is None:
        return row.contender
    plural = "" if row.api_processes == 1 else "es"
    return f"{row.contender} with {row.api_processes} API process{plural}"


def _cores(row: Row) -> str:
    return "1 core" if row.cores == 1 else f"{row.cores} cores"


def _times(value: float, reference: float) -> str:
    return f"{value / reference:.2f}x"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"

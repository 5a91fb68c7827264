"""What a run looks like in a terminal: a bar while it lasts, tables afterwards."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from server.load.latency import Latency
from server.load.record import Record
from server.load.report import LoadReport
from server.load.spec import LoadSpec

# Drawing costs milliseconds, on cores that the server may need.
_DRAW_SECONDS = 0.5


class Bar:
    """A progress bar on standard error, where that is a terminal, with what has been counted so far."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._console = Console(stderr=True)
        self._done = self._good = 0
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
            auto_refresh=False,
        )
        self._drawing: asyncio.Task[None] | None = None

    def observe(self, record: Record) -> None:
        """Count one request."""
        self._done += 1
        self._good += record.status == 200

    async def __aenter__(self) -> Bar:
        if self._console.is_terminal:
            self._drawing = asyncio.create_task(self._draw())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawing is not None:
            self._drawing.cancel()
            await asyncio.wait([self._drawing])

    async def _draw(self) -> None:
        spec = self._spec
        started = time.monotonic()
        with self._progress as progress:
            total = spec.requests if spec.duration is None else spec.duration + spec.warmup
            task = progress.add_task("", total=total)
            while True:
                seconds = time.monotonic() - started
                text = (
                    f"{seconds:.0f} s, {self._done} done, {self._done - self._good} without an"
                    " answer"
                )
                completed = self._done if spec.duration is None else seconds
                progress.update(task, completed=completed, description=text, refresh=True)
                await asyncio.sleep(_DRAW_SECONDS)


def print_report(report: LoadReport, stderr: bool = False) -> None:
    """Print ``report`` for people."""
    width = None if Console(stderr=stderr).is_terminal else 160
    console = Console(stderr=stderr, width=width, highlight=False, emoji=False)  # 16:-1: is no face
    console.print(describe(report.spec), markup=False, soft_wrap=True)
    console.print(_counts(report))
    console.print(_latencies(report))
    for line in _remarks(report):
        console.print(line, markup=False, soft_wrap=True)


def describe(spec: LoadSpec) -> str:
    """``spec`` in a line."""
    how = (
        f"open loop, {spec.rate:g} requests/s, {spec.arrivals}"
        if spec.rate
        else f"closed loop of {spec.connections}"
    )
    long = f"{spec.requests} requests" if spec.duration is None else f"{spec.duration:g} s"
    warm = f" after {spec.warmup:g} s of warm-up" if spec.warmup else ""
    return (
        f"{spec.url.rstrip('/')}/{spec.endpoint}, r={' or '.join(r or 'default' for r in spec.r)}:"
        f" {how}, {long}{warm}"
    )


def _counts(report: LoadReport) -> Table:
    table = Table("", "requests", "share", "per second", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, number: int) -> None:
        table.add_row(
            name,
            str(number),
            f"{number / max(1, report.requests):.1%}",
            f"{number / (report.seconds or 1):.1f}",
        )

    row("sent", report.requests)
    row("answered", report.answered)
    if report.spec.deadline_ms is not None:
        row(f"answered within {report.spec.deadline_ms:g} ms", report.good)
    for outcome, number in report.outcomes.items():
        if outcome != "200":
            row(f"status {outcome}" if outcome.isdigit() else f"no answer: {outcome}", number)
    return table


def _latencies(report: LoadReport) -> Table:
    table = Table(
        "milliseconds", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", box=None, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, latency: Latency | None) -> None:
        if latency is not None:
            values = (
                getattr(latency, key) for key in ("mean", "p50", "p90", "p95", "p99", "p999", "max")
            )
            table.add_row(name, *(f"{value:.1f}" for value in values))

    if report.spec.rate is not None:
        row("response, from when it was to be sent", report.response)
    row("service, from when it was sent", report.service)
    row("refusal", report.refused)
    if report.spec.rate is not None:
        row("sent later than planned", report.lag)
    return table


def _remarks(report: LoadReport) -> list[str]:
    lines = []
    if report.reasons:
        lines.append(
            "reasons given: "
            + ", ".join(f"{reason} {number}" for reason, number in report.reasons.items())
        )
    if report.r_mean is not None:
        shares = ", ".join(
            f"{r}: {number / report.answered:.0%}" for r, number in report.r_used.items()
        )
        lines.append(f"r used: {report.r_mean:.2f} on average ({shares})")
    if report.tokens_mean is not None and report.batch_mean is not None:
        lines.append(
            f"tokens left: {report.tokens_mean:.1f}; images in the same batch:"
            f" {report.batch_mean:.1f}"
        )
    cost = report.cpu_ms_per_request
    per_core = cost * report.requests / (report.seconds or 1) / 1000
    lines.append(
        f"this generator: {cost:.3f} ms of CPU time per request, {per_core:.1%} of a core; "
        f"{report.connections_opened} connections"
    )
    return lines

"""Terminal output of a run: a progress bar while it lasts, then tables."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from tome_load.latency import Latency
from tome_load.record import Record
from tome_load.report import LoadReport
from tome_load.spec import LoadSpec

# To draw takes milliseconds, on cores that the server may need.
_DRAW_SECONDS = 0.5
_TABLE_WIDTH = 160  # columns, where the output is not a terminal


class Bar:
    """A progress bar on stderr, if that is a terminal, with the number of requests so far."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._console = Console(stderr=True)
        self._ended = 0
        self._answered = 0
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
        self._ended += 1
        self._answered += record.status == 200

    async def __aenter__(self) -> Bar:
        if self._console.is_terminal:
            self._drawing = asyncio.create_task(self._draw())
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
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
                failed = self._ended - self._answered
                progress.update(
                    task,
                    completed=self._ended if spec.duration is None else seconds,
                    description=f"{seconds:.0f} s, {self._ended} done, {failed} without an answer",
                    refresh=True,
                )
                await asyncio.sleep(_DRAW_SECONDS)


def print_report(report: LoadReport, stderr: bool = False) -> None:
    """Print ``report`` as text and tables."""
    width = None if Console(stderr=stderr).is_terminal else _TABLE_WIDTH
    # emoji=False: rich would replace the schedule "16:-1:" by a symbol.
    console = Console(stderr=stderr, width=width, highlight=False, emoji=False)
    console.print(summarize(report.spec), markup=False, soft_wrap=True)
    console.print(_count_table(report))
    console.print(_latency_table(report))
    for line in _remarks(report):
        console.print(line, markup=False, soft_wrap=True)


def summarize(spec: LoadSpec) -> str:
    """Return ``spec`` in one line."""
    url = f"{spec.url.rstrip('/')}/{spec.endpoint}"
    schedules = " or ".join(r or "default" for r in spec.r)
    if spec.rate:
        loop = f"open loop, {spec.rate:g} requests/s, {spec.arrivals}"
    else:
        loop = f"closed loop of {spec.connections}"
    if spec.duration is None:
        extent = f"{spec.requests} requests"
    else:
        extent = f"{spec.duration:g} s"
    if spec.warmup:
        extent += f" after {spec.warmup:g} s of warm-up"
    return f"{url}, r={schedules}: {loop}, {extent}"


def _count_table(report: LoadReport) -> Table:
    table = _number_table("", "requests", "share", "per second")

    def add_row(name: str, count: int) -> None:
        share = count / max(1, report.requests)
        rate = count / (report.seconds or 1)
        table.add_row(name, str(count), f"{share:.1%}", f"{rate:.1f}")

    add_row("sent", report.requests)
    add_row("answered", report.answered)
    if report.spec.deadline_ms is not None:
        add_row(f"answered within {report.spec.deadline_ms:g} ms", report.good)
    for outcome, count in report.outcomes.items():
        if outcome == "200":
            continue
        if outcome.isdigit():
            add_row(f"status {outcome}", count)
        else:
            add_row(f"no answer: {outcome}", count)
    return table


def _latency_table(report: LoadReport) -> Table:
    table = _number_table("milliseconds", "mean", "p50", "p90", "p95", "p99", "p99.9", "max")

    def add_row(name: str, latency: Latency | None) -> None:
        if latency is None:
            return
        values = (
            latency.mean,
            latency.p50,
            latency.p90,
            latency.p95,
            latency.p99,
            latency.p999,
            latency.max,
        )
        table.add_row(name, *(f"{value:.1f}" for value in values))

    is_open_loop = report.spec.rate is not None
    if is_open_loop:
        add_row("response, from when it was to be sent", report.response)
    add_row("service, from when it was sent", report.service)
    add_row("refusal", report.refused)
    if is_open_loop:
        add_row("sent later than planned", report.lag)
    return table


def _number_table(*headers: str) -> Table:
    """Return a table whose columns are right-aligned, but for the first."""
    table = Table(*headers, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _remarks(report: LoadReport) -> list[str]:
    """Return the lines below the tables."""
    lines = []
    if report.reasons:
        reasons = [f"{reason} {count}" for reason, count in report.reasons.items()]
        lines.append(f"reasons given: {', '.join(reasons)}")
    if report.r_mean is not None:
        shares = [f"{r}: {count / report.answered:.0%}" for r, count in report.r_used.items()]
        lines.append(f"r used: {report.r_mean:.2f} on average ({', '.join(shares)})")
    if report.tokens_mean is not None and report.batch_mean is not None:
        lines.append(
            f"tokens left: {report.tokens_mean:.1f}; images in the same batch:"
            f" {report.batch_mean:.1f}"
        )
    cpu_ms = report.cpu_ms_per_request
    cpu_seconds = cpu_ms * report.requests / 1000
    cores = cpu_seconds / (report.seconds or 1)
    lines.append(
        f"this generator: {cpu_ms:.3f} ms of CPU time per request, {cores:.1%} of a core;"
        f" {report.connections_opened} connections"
    )
    return lines

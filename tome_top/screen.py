"""Terminal output of a frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tome_top.frame import Frame

_SPARKS = "▁▂▃▄▅▆▇█"
_BAR = "█"
_BAR_WIDTH = 30


def draw(
    url: str,
    frame: Frame | None,
    history: Iterable[float] = (),
    error: str = "",
) -> RenderableType:
    """Return the screen for ``frame``.

    Args:
        frame: the last interval; None if there is none yet.
        history: images/s of the intervals so far, oldest first.
        error: why there is no new frame.
    """
    heading = Text.assemble((url, "bold"), "  ", (error, "red"))
    if frame is None:
        return heading
    rows: list[RenderableType] = [heading, _summary(frame)]
    trend = sparkline(list(history))
    if trend:
        rows.append(Text(f"images/s  {trend}"))
    if frame.images:
        rows.append(_images_by_r(frame.images))
    if frame.stages:
        rows.append(Text(f"stages    {_milliseconds(frame.stages)}"))
    if frame.refused:
        rows.append(Text(f"refused   {_rates(frame.refused)}", style="yellow"))
    if frame.codes:
        rows.append(Text(f"status    {_rates(frame.codes)}"))
    return Group(*rows)


def _rates(rates: Mapping[str, float]) -> str:
    items = []
    for name in sorted(rates):
        items.append(f"{name} {rates[name]:.1f}/s")
    return "   ".join(items)


def _milliseconds(seconds: Mapping[str, float]) -> str:
    items = []
    for name in sorted(seconds):
        milliseconds = 1000 * seconds[name]
        items.append(f"{name} {milliseconds:.1f} ms")
    return "   ".join(items)


def _summary(frame: Frame) -> Table:
    """Return the two rows that every screen has."""
    rate = sum(frame.images.values())
    batch = "none" if frame.batch is None else f"{frame.batch:.1f} images"
    queue = _number(frame.queue)
    inflight = _number(frame.inflight)
    table = Table(
        box=None,
        pad_edge=False,
        show_header=False,
        padding=(0, 3, 0, 0),
    )
    table.add_row(
        f"images    {rate:.1f}/s",
        f"latency   {_latency(frame)}",
        f"speed-up  {_speedup(frame)}",
    )
    table.add_row(
        f"batch     {batch}",
        f"queue     {queue} images, {inflight} requests",
        f"engines   {frame.engines} ready, {frame.busy:.0%} busy, {frame.restarts} restarts",
    )
    return table


def _latency(frame: Frame) -> str:
    if not frame.quantiles:
        return "none"
    items = []
    for percent, seconds in frame.quantiles.items():
        milliseconds = 1000 * seconds
        items.append(f"p{percent} {milliseconds:.0f}")
    return "  ".join(items) + " ms"


def _speedup(frame: Frame) -> str:
    if not frame.speedup:
        return "none"
    items = []
    for model in sorted(frame.speedup):
        items.append(f"{frame.speedup[model]:.2f}x {model}")
    return "  ".join(items)


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.0f}"


def _images_by_r(images: Mapping[str, float]) -> Table:
    table = Table("r", "images/s", "", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    table.columns[1].justify = "right"
    largest = max(images.values())
    for r in sorted(images, key=_r_order):
        rate = images[r]
        length = round(_BAR_WIDTH * rate / largest)
        table.add_row(r, f"{rate:.1f}", _BAR * max(1, length))
    return table


def _r_order(r: str) -> tuple[bool, int, str]:
    """Order numbers by value, and before other schedules."""
    return (not r.isdigit(), len(r), r)


def sparkline(values: Sequence[float]) -> str:
    """Return ``values`` as bars, from 0 to the largest; empty for fewer than two or only zeros."""
    largest = max(values, default=0.0)
    if len(values) < 2 or largest <= 0:
        return ""
    bars = []
    for value in values:
        level = int(len(_SPARKS) * value / largest)
        bars.append(_SPARKS[min(level, len(_SPARKS) - 1)])
    return "".join(bars)

"""A frame as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.top.frame import Frame

_BARS = "▁▂▃▄▅▆▇█"
_BAR_WIDTH = 30


def draw(
    url: str, frame: Frame | None, history: Iterable[float] = (), trouble: str = ""
) -> RenderableType:
    """What the last interval showed.

    Args:
        history: images/s of the intervals so far, oldest first.
        trouble: why there is nothing new.
    """
    head = Text.assemble((url, "bold"), "  ", (trouble, "red") if trouble else "")
    if frame is None:
        return head
    parts: list[RenderableType] = [head, _summary(frame)]
    if trend := sparkline(list(history)):
        parts.append(Text(f"images/s  {trend}"))
    if frame.images:
        parts.append(_by_r(frame))
    if frame.stages:
        stages = "   ".join(
            f"{stage} {1000 * seconds:.1f} ms" for stage, seconds in sorted(frame.stages.items())
        )
        parts.append(Text(f"stages    {stages}"))
    for title, rates in (("refused", frame.refused), ("status", frame.codes)):
        if rates:
            values = "   ".join(f"{name} {rate:.1f}/s" for name, rate in sorted(rates.items()))
            parts.append(Text(f"{title:<9} {values}", style="yellow" if title == "refused" else ""))
    return Group(*parts)


def _summary(frame: Frame) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    latency = "  ".join(
        f"p{percent} {1000 * value:.0f}" for percent, value in frame.quantiles.items()
    )
    speedup = "  ".join(f"{value:.2f}x {model}" for model, value in sorted(frame.speedup.items()))
    table.add_row(
        f"images    {sum(frame.images.values()):.1f}/s",
        f"latency   {latency + ' ms' if latency else 'none'}",
        f"speed-up  {speedup or 'none'}",
    )
    table.add_row(
        f"batch     {'none' if frame.batch is None else f'{frame.batch:.1f} images'}",
        f"queue     {_number(frame.queue)} images, {_number(frame.inflight)} requests",
        f"engines   {frame.engines} ready, {frame.busy:.0%} busy, {frame.restarts} restarts",
    )
    return table


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


def _by_r(frame: Frame) -> Table:
    table = Table("r", "images/s", "", box=None, pad_edge=False)
    table.columns[0].justify = table.columns[1].justify = "right"
    most = max(frame.images.values())
    for r, rate in sorted(
        frame.images.items(), key=lambda item: (not item[0].isdigit(), len(item[0]), item[0])
    ):
        table.add_row(r, f"{rate:.1f}", "█" * max(1, round(_BAR_WIDTH * rate / most)))
    return table


def sparkline(values: Sequence[float]) -> str:
    """``values`` as bars, from 0 to the largest; nothing for fewer than two, or where all are 0."""
    most = max(values, default=0.0)
    if len(values) < 2 or most <= 0:
        return ""
    return "".join(_BARS[min(len(_BARS) - 1, int(len(_BARS) * value / most))] for value in values)

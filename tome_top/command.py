"""``tome-serve top``: its flags and its loop."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console
from rich.live import Live

from server.errors import ConfigError
from tome_top.frame import Frame, compare
from tome_top.scrape import NoMetrics, Scrape, scrape
from tome_top.screen import draw

_HISTORY = 60  # intervals
_WIDTH = 120  # columns, where the output is not a terminal


class TopCommand(BaseSettings):
    """Watch throughput by r, latency, speed-up, batches, queue and refusals of a server."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    url: str = Field(
        "http://127.0.0.1:8000",
        description=(
            "URL of the server, or unix: and the path of its socket; with TOME_METRICS_PORT the URL"
            " of its /metrics."
        ),
    )
    interval: float = Field(1.0, ge=0.1, le=3600, description="Seconds between two scrapes.")
    once: bool = Field(False, description="Print one interval and exit.")


def top(command: TopCommand) -> int:
    """Show frames until Ctrl-C, and return the exit code, 0.

    Raises:
        ConfigError: there are no metrics at the URL. If the server stops later, the screen says so
            until it is back.
    """
    if urlsplit(command.url).scheme not in ("http", "https", "unix"):
        raise ConfigError(
            f"{command.url!r} is not the URL of a server, such as http://127.0.0.1:8000"
        )
    width = None if Console().is_terminal else _WIDTH
    console = Console(width=width, highlight=False, emoji=False)
    try:
        first = scrape(command.url)
        if command.once:
            time.sleep(command.interval)
            frame = compare(first, scrape(command.url))
            console.print(draw(command.url, frame))
        elif console.is_terminal:
            _draw_live(command, console, first)
        else:
            _print_frames(command, console, first)
    except NoMetrics as error:
        raise ConfigError(f"{command.url}: {error}") from error
    except KeyboardInterrupt:
        pass
    return 0


def _print_frames(command: TopCommand, console: Console, first: Scrape) -> None:
    for frame, error in _until_interrupted(frames(command, first)):
        console.print(draw(command.url, frame, error=error))


def _draw_live(command: TopCommand, console: Console, first: Scrape) -> None:
    history: deque[float] = deque(maxlen=_HISTORY)
    last: Frame | None = None
    empty = draw(command.url, None)
    with Live(empty, console=console, auto_refresh=False, screen=True) as live:
        for frame, error in _until_interrupted(frames(command, first)):
            if frame is not None:
                last = frame
                history.append(sum(frame.images.values()))
            live.update(draw(command.url, last, history, error), refresh=True)


def _until_interrupted(
    found: Iterator[tuple[Frame | None, str]],
) -> Iterator[tuple[Frame | None, str]]:
    """Yield frames; raise `KeyboardInterrupt` at Ctrl-C, at the next frame at the latest.

    Python drops the exception where the signal arrives in a finalizer, which is then interrupted.
    """
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        for each in found:
            if received:
                raise KeyboardInterrupt
            yield each
    finally:
        signal.signal(signal.SIGINT, before)


def frames(command: TopCommand, before: Scrape) -> Iterator[tuple[Frame | None, str]]:
    """Yield a frame for each interval, or None and why there is none; without end."""
    due = time.monotonic()
    while True:
        # Scrapes start at fixed intervals, however long they take. Intervals missed during a pause
        # are not made up for.
        due = max(due + command.interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            after = scrape(command.url)
        except NoMetrics as error:
            yield None, str(error)
            continue
        yield compare(before, after), ""
        before = after

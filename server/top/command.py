"""``tome-serve top``: its flags, and its loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import BaseSettings, CliImplicitFlag, SettingsConfigDict
from rich.console import Console
from rich.live import Live

from server.errors import ConfigError
from server.top.frame import Frame, compare
from server.top.scrape import NoMetrics, Scrape, scrape
from server.top.screen import draw

_HISTORY = 60  # intervals


class TopCommand(BaseSettings):
    """Watch a server: throughput by r, latency, speed-up, batches, queue and refusals, from its /metrics."""

    model_config = SettingsConfigDict(
        env_prefix="TOME_", frozen=True, extra="ignore", cli_kebab_case=True, env_ignore_empty=True
    )

    url: str = Field(
        "http://127.0.0.1:8000",
        description="The server; or where its /metrics are, with TOME_METRICS_PORT.",
    )
    interval: float = Field(1.0, ge=0.1, le=3600, description="Seconds between two readings.")
    once: CliImplicitFlag[bool] = Field(
        False, description="Print what one interval showed, and end."
    )


def top(command: TopCommand) -> int:
    """Show frames until Ctrl-C. Returns the exit code, 0.

    Raises:
        ConfigError: there are no metrics at the address. If they are gone later, that is shown and
            waited for.
    """
    if urlsplit(command.url).scheme not in ("http", "https"):
        raise ConfigError(
            f"{command.url!r} is no address of a server; it looks like http://127.0.0.1:8000"
        )
    width = None if Console().is_terminal else 120
    console = Console(width=width, highlight=False, emoji=False)
    try:
        first = scrape(command.url)
        if command.once:
            time.sleep(command.interval)
            console.print(draw(command.url, compare(first, scrape(command.url))))
            return 0
        _watch(command, console, first)
    except NoMetrics as error:
        raise ConfigError(f"{command.url}: {error}") from error
    except KeyboardInterrupt:
        pass
    return 0


def _watch(command: TopCommand, console: Console, first: Scrape) -> None:
    history: deque[float] = deque(maxlen=_HISTORY)
    if not console.is_terminal:
        for frame, trouble in frames(command, first):
            console.print(draw(command.url, frame, (), trouble))
        return
    last: Frame | None = None
    with Live(draw(command.url, None), console=console, auto_refresh=False, screen=True) as live:
        for frame, trouble in frames(command, first):
            if frame is not None:
                last = frame
                history.append(sum(frame.images.values()))
            live.update(draw(command.url, last, history, trouble), refresh=True)


def frames(command: TopCommand, before: Scrape) -> Iterator[tuple[Frame | None, str]]:
    """A frame for each interval, or why there is none; endless."""
    due = time.monotonic()
    while True:
        # On a fixed beat, whatever a reading takes; but not in a hurry after a pause.
        due = max(due + command.interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            after = scrape(command.url)
        except NoMetrics as error:
            yield None, str(error)
            continue
        yield compare(before, after), ""
        before = after

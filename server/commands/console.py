"""How commands print tables, and show how far they are."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_TABLE_WIDTH = 160  # columns, where the output is not a terminal


def table_console() -> Console:
    """Return a console on stdout that is wide enough for tables, also in a pipe."""
    return Console(width=None if Console().is_terminal else _TABLE_WIDTH)


def make_progress() -> Progress:
    """Return a progress bar on stderr, which is removed when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )

"""What the commands of this folder have in common: options, and how they say how far they are."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


def positive(text: str) -> int:
    """Parse a positive number; raises what argparse reports."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def count(text: str) -> int:
    """Parse a number that is not negative; raises what argparse reports."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return int(text)


class RowProgress:
    """Says on stderr how far a run over all images is, for each of its rows."""

    def __init__(self, progress: Progress, task: TaskID, rows: int) -> None:
        self._progress = progress
        self._task = task
        self._rows = rows
        self._done = 0
        self._spent = 0.0

    def start(self, name: str) -> None:
        """The row ``name`` begins."""
        self._progress.update(self._task, description=name)

    def advance(self, images: int) -> None:
        """So many more images are done."""
        self._progress.advance(self._task, images)

    def finish(self, text: str, seconds: float) -> None:
        """A row is done; ``text`` says what was measured."""
        self._done += 1
        self._spent += seconds
        left = self._spent / self._done * (self._rows - self._done) / 60
        self._progress.console.print(
            f"{text}, {seconds:4.0f} s; {self._done} of {self._rows} rows, about {left:.0f} min"
            " left",
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def row_progress(rows: int, images: int) -> Iterator[RowProgress]:
    """Show the progress of ``rows`` over ``images`` each."""
    with _progress() as progress:
        task = progress.add_task("images", total=rows * images)
        yield RowProgress(progress, task, rows)


@contextmanager
def step_progress(steps: int, what: str) -> Iterator[Callable[[], object]]:
    """Show the progress of so many ``steps``; yield what is called after each."""
    with _progress() as progress:
        task = progress.add_task(what, total=steps)
        yield lambda: progress.advance(task)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, speed_estimate_period=600)

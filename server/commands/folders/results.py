"""What a command computes for each picture of a list, and writes in the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from server.commands.folders.working_file import WorkingFile
from server.commands.inputs import Row
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.runner import Runner
from tome_core.schedule import Schedule


class Result(NamedTuple):
    """The result for one picture, as `Task.payload` returns it."""

    path: str
    payload: bytes


class Results:
    """The results of a run, one after the other from the working file.

    Attributes:
        model: its name.
        r: the schedule.
        labels: of the model's classes.
        payload_bytes: of each result.
    """

    def __init__(
        self,
        runner: Runner,
        schedule: Schedule,
        paths: list[str],
        working_file: WorkingFile,
    ) -> None:
        self.model = runner.model.spec.name
        self.r = str(schedule)
        self.labels = runner.model.labels
        self.payload_bytes = working_file.payload_bytes
        self._paths = paths
        self._working_file = working_file

    def __len__(self) -> int:
        return self._working_file.done - self._working_file.failed

    def __iter__(self) -> Iterator[Result]:
        for path, record in zip(self._paths, self._working_file.read(), strict=True):
            if not record.reason:
                yield Result(path, record.payload)

    def failures(self) -> Iterator[tuple[str, str]]:
        """Yield path and reason of each picture that has no result."""
        for path, record in zip(self._paths, self._working_file.read(), strict=True):
            if record.reason:
                yield path, record.reason


class Task(ABC):
    """What to compute for each picture, and how to write it to ``output``."""

    output: Path

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the options on which results depend, by names for people."""

    @abstractmethod
    def check_list(self, paths: list[str]) -> None:
        """Raise `ConfigError` if ``output`` cannot have the results of so many pictures."""

    @abstractmethod
    def check_model(self, runner: Runner) -> None:
        """Raise `ConfigError` if the model has no such results."""

    @abstractmethod
    def ask(self, pixels: Row, schedule: Schedule) -> ImageInput:
        """Return what to ask of the model for one picture, ``uint8 (C, H, W)``."""

    @abstractmethod
    def payload(self, answer: ImageOutput) -> bytes:
        """Return the result for one picture, always of the same length."""

    @abstractmethod
    def write(self, results: Results) -> str:
        """Write ``output`` as a whole, and return what it has: ``2 embeddings of 384``."""

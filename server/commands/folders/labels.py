"""The best classes of pictures, in a CSV file."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.commands.folders.results import Results, Task
from server.commands.inputs import Row
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.runner import Runner
from server.errors import ConfigError
from server.system.files import replacing
from tome_core.schedule import Schedule

_BEST = np.dtype([("index", "<i4"), ("score", "<f4")])


@dataclass(frozen=True)
class Classify(Task):
    """The best classes of each picture, with their scores, as ``/classify`` gives them.

    Attributes:
        top_k: how many; all, if the model has fewer.
    """

    output: Path
    top_k: int

    def __post_init__(self) -> None:
        """Raise `ConfigError` if the suffix is another."""
        if self.output.suffix != ".csv":
            raise ConfigError(f"{self.output} must end in .csv")

    def identity(self) -> dict[str, Any]:
        """See `Task.identity`."""
        return {"--top-k": self.top_k}

    def check_list(self, paths: list[str]) -> None:
        """A CSV file may have any length."""

    def check_model(self, runner: Runner) -> None:
        """See `Task.check_model`."""
        if not runner.model.labels:
            raise ConfigError(f"model {runner.model.spec.name} has no classifier")

    def ask(self, pixels: Row, schedule: Schedule) -> ImageInput:
        """See `Task.ask`."""
        return ImageInput(pixels, schedule, self.top_k)

    def payload(self, answer: ImageOutput) -> bytes:
        """Return index and score of each class, best first."""
        best = np.empty(len(answer.classes), _BEST)
        best["index"] = answer.classes
        best["score"] = answer.scores
        return best.tobytes()

    def write(self, results: Results) -> str:
        """See `Task.write`."""
        count = results.payload_bytes // _BEST.itemsize
        columns = ["label", "score"]
        for place in range(2, count + 1):
            columns += [f"label_{place}", f"score_{place}"]
        with replacing(self.output) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["path", *columns, "r"])
            for path, payload in results:
                row = [path]
                for best in np.frombuffer(payload, _BEST):
                    row += [results.labels[best["index"]], f"{best['score']:.6g}"]
                writer.writerow([*row, results.r])
            text.detach()
        return f"the labels of {len(results):,} pictures"

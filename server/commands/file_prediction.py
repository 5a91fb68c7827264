"""The best classes of one file, and of each window of a sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.commands.flags import Windows
from server.commands.inputs import FileInputs, Row
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.runner import Runner
from tome_core.schedule import Schedule


@dataclass(frozen=True)
class BestClasses:
    """The best classes, best first, and their scores."""

    classes: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class FilePrediction:
    """What the model says of one file.

    Attributes:
        best: of an image, of the first window of a sound, or of the mean of all its windows.
        each: of every window; empty unless it was requested.
    """

    best: BestClasses
    each: tuple[BestClasses, ...] = ()


def predict(
    runner: Runner,
    inputs: FileInputs,
    schedule: Schedule,
    top_k: int,
    windows: Windows,
) -> FilePrediction:
    """Run the windows of one file that are requested, in one batch."""
    if windows == "first" or len(inputs.rows) == 1:
        output = _run(runner, inputs.rows[:1], schedule, top_k)[0]
        best = BestClasses(output.classes, output.scores)
        return FilePrediction(best, (best,) if windows == "each" else ())
    outputs = _run(runner, inputs.rows, schedule, len(runner.model.labels))
    scores = np.stack([_by_class(output) for output in outputs])
    best = _best(scores.mean(axis=0), top_k)
    if windows == "mean":
        return FilePrediction(best)
    return FilePrediction(best, tuple(_best(row, top_k) for row in scores))


def _run(
    runner: Runner,
    rows: Sequence[Row],
    schedule: Schedule,
    top_k: int,
) -> list[ImageOutput]:
    return runner.run([ImageInput(row, schedule, top_k) for row in rows])


def _by_class(output: ImageOutput) -> npt.NDArray[np.float64]:
    """Return the scores of all classes in their order, ``(classes,)``."""
    scores = np.empty(len(output.classes))
    scores[list(output.classes)] = output.scores
    return scores


def _best(scores: npt.NDArray[np.float64], top_k: int) -> BestClasses:
    """Return the ``top_k`` best of ``scores``, ``(classes,)``."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    return BestClasses(tuple(order.tolist()), tuple(scores[order].tolist()))

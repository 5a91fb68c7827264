"""The best classes of one file, and of each of its windows."""

from __future__ import annotations

from dataclasses import dataclass

from server.commands.flags import Windows
from server.commands.inputs import FileInputs, Row
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.media.window_scores import best_classes
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
        best: of an image, of the first window of a file, or of the mean of all its windows.
        each: of every window; empty unless it was requested.
        schedules: of the passes. The last one counts.
        confident: whether the classes are certain, or those of a second pass; None if that was not
            asked for.
    """

    best: BestClasses
    schedules: tuple[Schedule, ...]
    each: tuple[BestClasses, ...] = ()
    confident: bool | None = None


@dataclass(frozen=True)
class SecondPassRule:
    """When an image runs again, and under which schedule.

    Attributes:
        margin: of the two best probabilities, below which it does.
    """

    margin: float
    schedule: Schedule


def predict(
    runner: Runner,
    inputs: FileInputs,
    schedule: Schedule,
    top_k: int,
    windows: Windows,
) -> FilePrediction:
    """Run the windows of one file that are requested, in one batch."""
    rows = inputs.rows[:1] if windows == "first" else inputs.rows
    # The mean of several windows is over all classes, whichever are best in each.
    count = top_k if len(rows) == 1 else len(runner.model.labels)
    outputs = runner.run([ImageInput(row, schedule, count) for row in rows])
    best = BestClasses(*best_classes(outputs, top_k))
    if windows != "each":
        return FilePrediction(best, (schedule,))
    each = (BestClasses(found.classes[:top_k], found.scores[:top_k]) for found in outputs)
    return FilePrediction(best, (schedule,), tuple(each))


def predict_image(
    runner: Runner,
    image: Row,
    schedule: Schedule,
    top_k: int,
    second: SecondPassRule | None = None,
) -> FilePrediction:
    """Run an image, and once more if ``second`` says so."""
    count = max(top_k, 2)
    (found,) = runner.run([ImageInput(image, schedule, count)])
    schedules: tuple[Schedule, ...] = (schedule,)
    if second is not None and _is_uncertain(found.scores, second.margin):
        schedules = (schedule, second.schedule)
        (found,) = runner.run([ImageInput(image, second.schedule, count)])
    best = BestClasses(found.classes[:top_k], found.scores[:top_k])
    return FilePrediction(best, schedules)


def _is_uncertain(probabilities: tuple[float, ...], margin: float) -> bool:
    return len(probabilities) > 1 and probabilities[0] - probabilities[1] < margin

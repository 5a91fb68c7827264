"""When an image runs a second time: the parameters ``confidence`` and ``confidence_r``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from server.api.contract.parameter_values import invalid_parameter, value_not_allowed
from server.ipc.messages import Level, ModelInfo
from server.media.modality import Modality
from tome_core.schedule import Schedule

AUTO = "auto"

_EXACT = Schedule.constant(0)
_MARGIN = re.compile(r"(\d{1,20}(\.\d{0,20})?|\.\d{1,20})(e[+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Confidence:
    """Which images run again, with less merging.

    An image is certain if the probability of its best class exceeds that of the second by a margin.

    Attributes:
        margins: by the schedule of the first pass. An image of a schedule that is not among them is
            certain.
        schedule: of the second pass.
    """

    margins: Mapping[Schedule, float]
    schedule: Schedule

    def is_certain(self, schedule: Schedule, probabilities: tuple[float, ...]) -> bool:
        """Return whether an image needs no second pass.

        Args:
            schedule: of its first pass.
            probabilities: of its classes, best first: two, or one of a model with one class.
        """
        margin = self.margins.get(schedule)
        if margin is None or len(probabilities) < 2:
            return True
        return probabilities[0] - probabilities[1] >= margin


def parse_confidence(
    text: str | None,
    second: Schedule | None,
    choices: tuple[Schedule, ...],
    model: ModelInfo,
) -> Confidence | None:
    """Return which images run again; None for a request that does not ask for it.

    Args:
        text: of ``confidence``: a margin, or ``auto`` for those of the model's profile.
        second: the schedule of ``confidence_r``; None for the exact model.
        choices: the schedules of the first pass.

    Raises:
        InvalidParameter: the margin is malformed or not known, the model has no probabilities, or
            the second pass would merge as much as the first.
    """
    if text is None:
        if second is not None:
            raise invalid_parameter(
                "confidence_r", "confidence_r is the second pass of confidence, which is not given"
            )
        return None
    if model.modality is not Modality.IMAGE:
        raise invalid_parameter(
            "confidence", f"{model.name} takes {model.modality.noun}s; confidence is for images"
        )
    if model.activation != "softmax":
        raise invalid_parameter(
            "confidence",
            f"the scores of {model.name} are no probabilities of classes that exclude each other,"
            " so they do not say how certain it is",
        )
    first = _merging_more(choices, second or _EXACT, model)
    if second is not None and not first:
        raise invalid_parameter("confidence_r", "the second pass must merge less than the first")
    if text == AUTO:
        margins = _profiled_margins(first, second, model)
    else:
        margins = dict.fromkeys(first, _parse_margin(text))
    return Confidence(margins, second or _EXACT)


def runs_again_as_profiled(level: Level, text: str | None, second: Schedule | None) -> bool:
    """Return whether what the profile says of second passes at ``level`` holds for a request.

    It was measured with those at r=0 of the images below the profile's margin. With a larger one
    these images run again, and others.

    Args:
        level: of the first pass.
        text: of ``confidence``; None where it is not given.
        second: the schedule of ``confidence_r``; None where it is not given.

    Raises:
        InvalidParameter: the margin is malformed.
    """
    if text is None or level.margin is None:
        return False
    if second is not None and second != _EXACT:
        return False
    return text == AUTO or _parse_margin(text) >= level.margin


def _merging_more(
    choices: tuple[Schedule, ...], second: Schedule, model: ModelInfo
) -> list[Schedule]:
    """Return those of ``choices`` that merge more than ``second``."""
    tokens = _tokens(second, model)
    return [choice for choice in choices if _tokens(choice, model) < tokens]


def _tokens(schedule: Schedule, model: ModelInfo) -> int:
    """Return the tokens of one image over all blocks."""
    return sum(model.geometry.token_counts(schedule))


def _parse_margin(text: str) -> float:
    # float() alone also accepts "0_7", "nan", surrounding blanks and digits of other scripts.
    if _MARGIN.fullmatch(text) and float(text) <= 1:
        return float(text)
    raise value_not_allowed("confidence", text, "allowed are 0 to 1, or auto")


def _profiled_margins(
    first: list[Schedule], second: Schedule | None, model: ModelInfo
) -> dict[Schedule, float]:
    """Return the margins of the profile for ``first``.

    Raises:
        InvalidParameter: the profile has none for one of them, or is of another second pass.
    """
    if second is not None and second != _EXACT:
        raise invalid_parameter(
            "confidence", "confidence=auto is for a second pass at r=0; name a margin from 0 to 1"
        )
    known = {
        Schedule.parse(level.r): level.margin for level in model.levels if level.margin is not None
    }
    missing = [schedule for schedule in first if schedule not in known]
    if missing:
        raise invalid_parameter(
            "confidence",
            f"{model.name} has no margin for r={missing[0]}, which must be one of its levels and in"
            " the profile that `tome-serve evaluate --profile` or `tune` writes; name a margin from"
            " 0 to 1",
        )
    return {schedule: known[schedule] for schedule in first}

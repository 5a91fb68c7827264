"""The levels of a model that ``r=auto`` may choose from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from server.api.contract.parameter_values import invalid_parameter, is_integer, value_not_allowed
from server.ipc.messages import Level, ModelInfo
from tome_core.schedule import Schedule

AUTO = "auto"

_MAX_R_DIGITS = 6  # int() of a very long number is slow, and Python refuses it
_PERCENTAGE = re.compile(r"\d{1,3}(\.\d{0,12})?", re.ASCII)


def parse_auto_schedules(
    r_max: str | None, min_accuracy: str | None, model: ModelInfo
) -> tuple[Schedule, ...]:
    """Return the levels of ``model`` that ``r=auto`` may choose, the one that merges least first.

    Raises:
        InvalidParameter: a bound is malformed, or no level meets both.
    """
    largest_r = parse_r_max(r_max, model)
    lowest_accuracy = parse_accuracy(min_accuracy)
    levels = [level for level in model.levels if Schedule.parse(level.r).counts[0] <= largest_r]
    if lowest_accuracy is not None:
        levels = select_accurate_levels(levels, lowest_accuracy, model)
    return tuple(Schedule.parse(level.r) for level in drop_slow_levels(levels))


def drop_slow_levels(levels: Sequence[Level]) -> list[Level]:
    """Return the ``levels`` that are faster than every level that merges less, least merging first.

    Merging costs time too: a level may be slower than r=0, or than a level that merges less, and
    then it has no advantage. A level without a measurement stays.
    """
    useful: list[Level] = []
    best_speedup = -math.inf
    for level in sorted(levels, key=_negative_flops):
        if level.speedup is None:
            useful.append(level)
        elif level.speedup > best_speedup:
            useful.append(level)
            best_speedup = level.speedup
    return useful


def _negative_flops(level: Level) -> float:
    return -level.relative_flops


def select_accurate_levels(
    levels: list[Level], lowest_accuracy: float, model: ModelInfo
) -> list[Level]:
    """Return the ``levels`` with an accuracy of at least ``lowest_accuracy`` percent.

    Raises:
        InvalidParameter: no level has it, or ``model`` has no accuracy profile.
    """
    known = [level.accuracy for level in levels if level.accuracy is not None]
    if not known:
        raise invalid_parameter(
            "min_accuracy",
            f"{model.name} has no profile of its accuracy;"
            " `tome-serve evaluate --profile` writes one",
        )
    highest = max(known)
    if highest < lowest_accuracy:
        raise invalid_parameter(
            "min_accuracy",
            f"the best of the allowed levels of {model.name} reaches {highest:g}%",
        )
    return [
        level
        for level in levels
        if level.accuracy is not None and level.accuracy >= lowest_accuracy
    ]


def parse_r_max(text: str | None, model: ModelInfo) -> float:
    """Return the largest ``r`` to choose, infinity without a bound. Raises `InvalidParameter`."""
    if text is None:
        return math.inf
    if is_integer(text, _MAX_R_DIGITS) and int(text) <= model.r_max:
        return int(text)
    raise value_not_allowed("r_max", text, f"allowed are 0 to {model.r_max}")


def parse_accuracy(text: str | None) -> float | None:
    """Return an accuracy in percent, or None without a bound. Raises `InvalidParameter`."""
    if text is None:
        return None
    # float() alone also accepts "9_0", "nan", surrounding blanks and digits of other scripts.
    if _PERCENTAGE.fullmatch(text) and float(text) <= 100:
        return float(text)
    raise value_not_allowed("min_accuracy", text, "allowed is a percentage, 0 to 100")

"""The schedules that a request allows: the one it names, or with ``r=auto`` levels of its model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from server.errors import InvalidParameter
from server.ipc.messages import Level, ModelInfo
from tome_core.schedule import Schedule

AUTO = "auto"

# Error details quote this many characters of a client's value.
QUOTED_CHARACTERS = 40

_MAX_R_DIGITS = 6  # int() of a very long number is slow, and Python refuses it
_PERCENTAGE = re.compile(r"\d{1,3}(\.\d{0,12})?", re.ASCII)


def parse_schedules(
    query: Mapping[str, str], default_r: str, model: ModelInfo
) -> tuple[Schedule, ...]:
    """Return the schedules that a request allows, the one that merges least first.

    Args:
        query: the query parameters.
        default_r: ``r`` of a request that names none; clamped to what ``model`` supports.
        model: the model that the request names.

    Raises:
        InvalidParameter: a value is malformed, or ``model`` does not support it.
    """
    r = query.get("r", default_r)
    # An HTML form sends an empty value for a field left blank.
    r_max = query.get("r_max") or None
    min_accuracy = query.get("min_accuracy") or None
    if r == AUTO:
        return parse_auto_schedules(r_max, min_accuracy, model)
    if r_max is not None:
        raise _auto_only("r_max", r)
    if min_accuracy is not None:
        raise _auto_only("min_accuracy", r)
    if "r" in query:
        return (parse_r(r, model),)
    return (clamp_schedule(Schedule.parse(default_r), model),)


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


def parse_r(text: str, model: ModelInfo) -> Schedule:
    """Return the schedule of a client's ``r``.

    Raises:
        InvalidParameter: ``text`` is no schedule, or ``model`` does not support it.
    """
    try:
        schedule = Schedule.parse(text)
    except ValueError:
        raise _not_a_schedule(text, model) from None
    largest = max(schedule.counts)
    if largest > model.r_max:
        raise invalid_parameter(
            "r",
            f"r={largest} is too large for {model.name}; allowed are 0 to {model.r_max}",
        )
    length = len(schedule.counts)
    if schedule.explicit and length > model.depth:
        raise invalid_parameter(
            "r", f"r lists {length} numbers; {model.name} has {model.depth} blocks"
        )
    return schedule


def clamp_schedule(schedule: Schedule, model: ModelInfo) -> Schedule:
    """Return ``schedule`` cut to what ``model`` supports: one default has to suit every model."""
    counts = tuple(min(count, model.r_max) for count in schedule.counts)
    return Schedule(counts[: model.depth], schedule.inflection, schedule.explicit)


def is_integer(text: str, max_digits: int) -> bool:
    """Whether ``text`` is a non-negative decimal integer of at most ``max_digits`` ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= max_digits


def invalid_parameter(parameter: str, detail: str) -> InvalidParameter:
    """The error of a ``parameter`` whose value is not allowed."""
    return InvalidParameter(detail, parameter=parameter)


def value_not_allowed(parameter: str, text: str, allowed: str) -> InvalidParameter:
    """The error of a ``parameter`` whose value is ``text``; ``allowed`` names what is."""
    quoted = text[:QUOTED_CHARACTERS]
    return invalid_parameter(parameter, f"{parameter}={quoted!r} is not allowed; {allowed}")


def _not_a_schedule(text: str, model: ModelInfo) -> InvalidParameter:
    return invalid_parameter(
        "r",
        f"r={text[:QUOTED_CHARACTERS]!r} is not a schedule; allowed are a number from 0 to"
        f" {model.r_max} (16), a number with an inflection from -1 to 1 (16:-1), up to"
        f" {model.depth} numbers, one per block (30,0,5,20), or auto",
    )


def _auto_only(parameter: str, r: str) -> InvalidParameter:
    return invalid_parameter(
        parameter,
        f"{parameter} bounds what r=auto chooses;"
        f" with r={r[:QUOTED_CHARACTERS]} there is nothing to choose",
    )

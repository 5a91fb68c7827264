"""Which schedules a request allows: the one that it names, or with ``r=auto`` some of its model's levels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from server.errors import InvalidParameter
from server.ipc.messages import Level, ModelInfo
from tome_core.schedule import Schedule

AUTO = "auto"


def parse_choices(
    query: Mapping[str, str], default_r: str, model: ModelInfo
) -> tuple[Schedule, ...]:
    """The schedules that a request allows, mildest first.

    Args:
        default_r: of requests that name no ``r``; what of it ``model`` cannot do is cut off.

    Raises:
        InvalidParameter: ``model`` cannot do what is asked.
    """
    text = query.get("r", default_r)
    if text == AUTO:
        return parse_auto(query.get("r_max") or None, query.get("min_accuracy") or None, model)
    for name in ("r_max", "min_accuracy"):
        if query.get(name):
            raise invalid(
                name,
                f"{name} bounds what r=auto chooses; with r={text[:40]} there is nothing to choose",
            )
    return (parse_r(text, model) if "r" in query else clamp(Schedule.parse(default_r), model),)


def parse_auto(
    r_max: str | None, min_accuracy: str | None, model: ModelInfo
) -> tuple[Schedule, ...]:
    """The levels of ``model`` within these bounds that are worth taking, mildest first.

    Raises:
        InvalidParameter: there is none within these bounds.
    """
    most = parse_r_max(r_max, model)
    least = parse_accuracy(min_accuracy)
    levels = [level for level in model.levels if Schedule.parse(level.r).counts[0] <= most]
    if least is not None:
        levels = accurate(levels, least, model)
    return tuple(Schedule.parse(level.r) for level in faster(levels))


def faster(levels: Sequence[Level]) -> list[Level]:
    """Those of ``levels`` that were measured to be faster than all milder ones, mildest first.

    Merging costs time too: a level may be slower than r=0, or than one that merges less, and gains
    nothing then. What was not measured stays.
    """
    kept: list[Level] = []
    best = -math.inf
    for level in sorted(levels, key=lambda level: -level.relative_flops):
        if level.speedup is None or level.speedup > best:
            kept.append(level)
            best = max(best, level.speedup or best)
    return kept


def accurate(levels: list[Level], least: float, model: ModelInfo) -> list[Level]:
    """Those of ``levels`` that reach an accuracy of ``least`` percent. Raises `InvalidParameter` if there is none."""
    known = [level.accuracy for level in levels if level.accuracy is not None]
    if not known:
        text = (
            f"{model.name} has no profile that says how accurate it is; `tome-serve evaluate"
            " --profile` makes one"
        )
        raise invalid("min_accuracy", text)
    if max(known) < least:
        raise invalid(
            "min_accuracy",
            f"the best of the allowed levels of {model.name} reaches {max(known):g}%",
        )
    return [level for level in levels if level.accuracy is not None and level.accuracy >= least]


def parse_r_max(text: str | None, model: ModelInfo) -> float:
    """The largest ``r`` that may be chosen; infinity where it is not bounded. Raises `InvalidParameter`."""
    if text is None:
        return math.inf
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) <= model.r_max):
        raise invalid(
            "r_max", f"r_max={text[:40]!r} is not allowed; allowed are 0 to {model.r_max}"
        )
    return int(text)


def parse_accuracy(text: str | None) -> float | None:
    """Percent. Raises `InvalidParameter`."""
    if text is None:
        return None
    # float() alone also takes "9_0", "nan", blanks around and digits of other scripts.
    if not re.fullmatch(r"\d{1,3}(\.\d{0,12})?", text, re.ASCII) or float(text) > 100:
        raise invalid(
            "min_accuracy",
            f"min_accuracy={text[:40]!r} is not allowed; allowed is a percentage, 0 to 100",
        )
    return float(text)


def parse_r(text: str, model: ModelInfo) -> Schedule:
    """The schedule that ``text`` asks for. Raises `InvalidParameter` if ``model`` cannot do it."""
    try:
        schedule = Schedule.parse(text)
    except ValueError:
        raise invalid(
            "r",
            f"r={text[:40]!r} is not a schedule; allowed are a number from 0 to {model.r_max} (16),"
            f" a number with an inflection from -1 to 1 (16:-1), up to {model.depth} numbers, one"
            " per block (30,0,5,20), or auto",
        ) from None
    if max(schedule.counts) > model.r_max:
        raise invalid(
            "r",
            f"r={max(schedule.counts)} is too large for {model.name}; allowed are 0 to"
            f" {model.r_max}",
        )
    if schedule.explicit and len(schedule.counts) > model.depth:
        raise invalid(
            "r", f"r lists {len(schedule.counts)} numbers; {model.name} has {model.depth} blocks"
        )
    return schedule


def clamp(schedule: Schedule, model: ModelInfo) -> Schedule:
    """What ``model`` can do of ``schedule``: the default has to suit every model that is served."""
    counts = tuple(min(count, model.r_max) for count in schedule.counts)
    return Schedule(counts[: model.depth], schedule.inflection, schedule.explicit)


def invalid(parameter: str, detail: str) -> InvalidParameter:
    """The error of a ``parameter`` whose value is not allowed."""
    return InvalidParameter(detail, parameter=parameter)
